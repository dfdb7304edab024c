"""Averaging along the motion: what it removes, what it leaves alone, where it is used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_video.motion.average import average_along_motion
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from tests.model_support import rand_pixels, small_video_model
from tests.motion_support import FRAMES, SIZE, decibels, noisy, nothing, scene


def test_noise_is_averaged_away_under_motion() -> None:
    clip = scene()
    given = noisy(clip)
    near, far = (decibels(average_along_motion(given, nothing(given), reach).frames, clip) for reach in (1, 2))
    assert far > near > decibels(given, clip) + 2


@pytest.mark.parametrize("sigma", [0, 0.005, 0.015])
def test_noise_that_costs_less_than_averaging_is_left(sigma: float) -> None:
    clip = noisy(scene(), sigma)
    assert average_along_motion(clip, nothing(clip), 2).frames is clip


def test_the_more_noise_the_more_is_averaged() -> None:
    clip = scene()
    given = [noisy(clip, sigma) for sigma in (0.025, 0.035, 0.07)]
    won = [decibels(average_along_motion(x, nothing(x), 2).frames, clip) - decibels(x, clip) for x in given]
    assert 0.3 < won[0] < won[1] < won[2]
    noise = [average_along_motion(x, nothing(x), 2).noise for x in (clip, *given)]
    assert noise[0] == 0 < noise[1] < noise[2] < noise[3] < 1


def test_equal_frames_come_back() -> None:
    clip = scene(step=0)
    torch.testing.assert_close(average_along_motion(clip, nothing(clip), 2).frames, clip, atol=1e-5, rtol=0)


def test_what_is_averaged_stays_between_black_and_white() -> None:
    """Neighbours are brought to their place by an interpolation that overshoots at edges."""
    clip = noisy(3 * scene()).clamp(-1, 1)
    averaged = average_along_motion(clip, nothing(clip), 2)
    assert averaged.noise > 0
    assert averaged.frames.min() == -1 and averaged.frames.max() == 1


def test_a_cut_is_not_mixed_across() -> None:
    before, after = scene(0), scene(9)
    clip = noisy(torch.cat([before, after]))
    apart = torch.cat([average_along_motion(half, nothing(half), 2).frames for half in clip.split(FRAMES)])
    together = average_along_motion(clip, nothing(clip), 2).frames
    assert (together - apart).abs().mean() < 0.1 * (clip[FRAMES - 1] - clip[FRAMES]).abs().mean()
    assert decibels(together, torch.cat([before, after])) > decibels(clip, torch.cat([before, after]))


def test_what_is_hidden_is_neither_read_nor_changed() -> None:
    clip = noisy(scene())
    hidden = nothing(clip)
    hidden[..., 10:20, 20:34] = 1  # a logo that stands still
    clip = torch.where(hidden.bool(), torch.ones(()), clip)
    averaged = average_along_motion(clip, hidden, 2).frames
    assert torch.equal(averaged[hidden.expand_as(clip).bool()], clip[hidden.expand_as(clip).bool()])
    outside = (1 - hidden).expand_as(clip).bool()
    assert averaged[outside].max() <= clip[outside].max() + 0.02  # nothing of its white


@pytest.mark.parametrize(
    ("shape", "reach"), [((1, 3, 32, 32), 2), ((4, 3, 15, 40), 2), ((4, 3, 40, 8), 2), ((4, 3, 32, 32), 0)]
)
def test_what_cannot_be_averaged_is_returned(shape: tuple[int, ...], reach: int) -> None:
    clip = rand_pixels(*shape)
    assert average_along_motion(clip, nothing(clip), reach).frames is clip


@pytest.mark.parametrize("size", [(16, 16), (16, 90), (17, 23)])
def test_small_frames_and_half_types_are_taken(size: tuple[int, int]) -> None:
    clip = rand_pixels(3, 3, *size).bfloat16()
    averaged = average_along_motion(clip, nothing(clip), 2).frames
    assert averaged.shape == clip.shape and averaged.dtype == clip.dtype and averaged.abs().max() <= 1


def test_a_restorer_averages_where_it_enlarges_and_nowhere_else() -> None:
    model, clip = small_video_model(), noisy(scene()).clamp(-1, 1)

    def restored(scale: int, average: int) -> Tensor:
        hole = torch.zeros(FRAMES, 1, SIZE[0] * scale, SIZE[1] * scale)
        return Restorer(model, RestoreSettings(average=average))(clip, hole, range(FRAMES))

    assert not torch.equal(restored(2, 0), restored(2, 2))
    assert torch.equal(restored(1, 0), restored(1, 2))
    averaged = average_along_motion(clip, nothing(clip), 2).frames
    hole = torch.zeros(FRAMES, 1, SIZE[0] * 2, SIZE[1] * 2)
    assert torch.equal(restored(2, 2), Restorer(model, RestoreSettings())(averaged, hole, range(FRAMES)))
