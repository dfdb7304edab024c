"""Outputs blended along the motion, and given back what they are off the input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.evidence import Evidence, resize
from ldm_video.motion.average import average_along_motion
from ldm_video.pipeline import restore
from ldm_video.pipeline.fidelity import back_project
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.pipeline.steady import steady
from tests.model_support import rand_pixels, small_video_model
from tests.motion_support import FRAMES, SIZE, decibels, noisy, nothing, scene

SCALE = 4


def flicker(seed: int = 5, side: int = 8) -> Tensor:
    """What a model adds to each spot of each frame anew, ``t 3 H W``: spots some ``side`` pixels wide."""
    coarse = torch.randn(
        FRAMES, 3, SIZE[0] * SCALE // side, SIZE[1] * SCALE // side, generator=torch.Generator().manual_seed(seed)
    )
    return 0.05 * F.interpolate(coarse, (SIZE[0] * SCALE, SIZE[1] * SCALE), mode="bicubic")


def near(a: Tensor, b: Tensor) -> float:
    return decibels(a, b, margin=4 * SCALE, moved=20 * SCALE)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_flicker_falls_under_motion(step: int) -> None:
    truth, guide = scene(step=step, enlarged=SCALE), scene(step=step)
    moved = (..., slice(16, -16), slice(80, -80))
    given = truth + flicker()
    one, two = (steady(given, guide, nothing(guide), reach) for reach in (1, 2))

    def off(x: Tensor) -> float:
        return (x - truth)[moved].square().mean().item()

    assert off(two) < off(one) < 0.6 * off(given)


def test_fine_detail_stays() -> None:
    """The finer, the less is taken: the motion found on the low-res grid would smear the finest detail."""
    guide = scene()

    def taken(side: int) -> float:
        extra = flicker(side=side)
        given = scene(enlarged=SCALE) + extra
        return ((steady(given, guide, nothing(guide), 1) - given).square().mean() / extra.square().mean()).item()

    assert taken(1) < 0.05 < taken(2) < 0.15 < 0.4 < taken(8)


def test_a_steady_clip_stays_as_it_is() -> None:
    truth, guide = scene(enlarged=SCALE), scene()
    assert near(steady(truth, guide, nothing(guide), 1), truth) > 50
    still = scene(step=0, enlarged=SCALE)
    torch.testing.assert_close(steady(still, scene(step=0), nothing(guide), 1), still, atol=1e-5, rtol=0)


def test_nothing_is_blended_across_a_cut() -> None:
    before, after = (scene(seed, enlarged=SCALE) for seed in (0, 9))
    guide, given = torch.cat([scene(0), scene(9)]), torch.cat([before, after])
    apart = torch.cat([steady(x, g, nothing(g), 1) for x, g in ((before, scene(0)), (after, scene(9)))])
    together = steady(given, guide, nothing(guide), 1)
    assert (together - apart).abs().mean() < 0.01 * (before[-1] - after[0]).abs().mean()


def test_nothing_is_blended_where_the_guide_is_hidden() -> None:
    guide, given = scene(), scene(enlarged=SCALE) + flicker()
    hidden = nothing(guide)
    hidden[..., 12:36, 16:48] = 1
    inner = (..., slice(16 * SCALE, 32 * SCALE), slice(20 * SCALE, 44 * SCALE))  # beyond what is added smoothly
    result = steady(given, guide, hidden, 1)
    assert torch.equal(result[inner], given[inner])
    assert not torch.equal(result, given)


@pytest.mark.parametrize(("frames", "reach"), [(1, 1), (4, 0)])
def test_without_neighbours_the_output_comes_back(frames: int, reach: int) -> None:
    output, guide = rand_pixels(frames, 3, 64, 64), rand_pixels(frames, 3, 16, 16)
    assert steady(output, guide, nothing(guide), reach) is output


@pytest.mark.parametrize("size", [(65, 97), (33, 200), (64, 64)])
def test_odd_and_uneven_sizes(size: tuple[int, int]) -> None:
    guide = rand_pixels(3, 3, 17, 40)
    output = rand_pixels(3, 3, *size).bfloat16()
    result = steady(output, guide, nothing(guide), 1)
    assert result.shape == output.shape and result.dtype == output.dtype and bool(result.isfinite().all())


@pytest.mark.gpu
def test_the_gpu_blends_as_the_cpu_does() -> None:
    guide, given = scene(), scene(enlarged=SCALE) + flicker()
    gpu = steady(given.cuda(), guide.cuda(), nothing(guide).cuda(), 2)
    # OpenCV reads at a 32nd of a pixel.
    torch.testing.assert_close(gpu.cpu(), steady(given, guide, nothing(guide), 2), atol=1e-2, rtol=0)


def off_input(output: Tensor, lowres: Tensor) -> float:
    return (resize(output, (lowres.shape[-2], lowres.shape[-1])) - lowres).square().mean().sqrt().item()


def test_a_share_of_what_is_off_the_input_is_given_back() -> None:
    lowres = scene()[None]
    output = scene(enlarged=SCALE)[None] + flicker(side=16)[None]
    none = nothing(lowres[0])[None]
    gaps = [off_input(back_project(output, lowres, none, share), lowres) for share in (0, 0.2, 0.5, 1)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[1] == pytest.approx(0.8 * gaps[0], rel=0.08)
    assert gaps[3] < 0.3 * gaps[0]


def test_an_output_that_agrees_stays_as_it_is() -> None:
    output = scene(enlarged=SCALE)[None]
    lowres = resize(output, SIZE)
    none = nothing(lowres[0])[None]
    torch.testing.assert_close(back_project(output, lowres, none, 1.0), output, atol=1e-6, rtol=0)
    assert back_project(output, lowres + 1, none, 0) is output


def test_the_hole_gives_nothing_back() -> None:
    """What the input shows of the hole, a logo say, does not reach the output, in the hole or beside it."""
    output = scene(enlarged=SCALE)[None]
    lowres = resize(output, SIZE)
    hidden = nothing(lowres[0])[None]
    hidden[..., 10:20, 20:40] = 1
    shown = torch.where(hidden.bool(), torch.ones(()), lowres)
    torch.testing.assert_close(back_project(output, shown, hidden, 1.0), output, atol=1e-6, rtol=0)
    inside = F.interpolate(hidden[0], scale_factor=SCALE)[None] > 0
    filled = torch.where(inside, 0.9, output)
    result = back_project(filled, lowres, hidden, 1.0)
    assert off_input(filled, lowres) > 0.1
    torch.testing.assert_close(result, filled, atol=1e-6, rtol=0)


def restored(settings: RestoreSettings, scale: int = 2, before: Tensor | None = None) -> Tensor:
    clip = noisy(scene()).clamp(-1, 1)
    hole = torch.zeros(FRAMES, 1, SIZE[0] * scale, SIZE[1] * scale)
    return Restorer(small_video_model(), settings)(clip, hole, range(FRAMES), before=before)


def test_a_restorer_does_both_after_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Restorer._decode
    monkeypatch.setattr(Restorer, "_decode", lambda *given: decode(*given).clamp(-1, 1))  # as it comes out by itself
    monkeypatch.setattr(restore, "match_colour", lambda output, *_: output)
    clip = noisy(scene()).clamp(-1, 1)
    none = nothing(clip)
    averaged, noise = average_along_motion(clip, none, 2)
    assert 0.3 < noise < 1
    output = steady(restored(RestoreSettings(average=2)), averaged, none, 1)
    output = back_project(output[None], clip[None], none[None], 0.2 * (1 - noise))[0].clamp(-1, 1)
    torch.testing.assert_close(restored(RestoreSettings(average=2, steady=1, fidelity=0.2)), output, atol=1e-6, rtol=0)


def test_what_the_codec_adds_at_the_end_is_not_blended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are carried along the motion are steady as they come."""
    seen: list[Tensor] = []
    model = small_video_model()

    def finish(pixels: Tensor, evidence: Evidence) -> Tensor:
        seen.append(pixels.clone())
        return pixels + 0.25 * torch.arange(FRAMES).view(-1, 1, 1, 1).remainder(2)  # every other frame is brighter

    clip, hole = noisy(scene()).clamp(-1, 1) / 2, torch.zeros(FRAMES, 1, SIZE[0] * 2, SIZE[1] * 2)
    settings = RestoreSettings(steady=1, colour="none")
    plain = Restorer(model, settings)(clip, hole, range(FRAMES))
    monkeypatch.setattr(model.codec, "finish", finish)
    finished = Restorer(model, settings)(clip, hole, range(FRAMES))
    height, width = finished.shape[-2:]
    blended = seen[0][0, ..., :height, :width]  # before it was finished
    torch.testing.assert_close(blended.clamp(-1, 1), plain, atol=1e-6, rtol=0)
    bright = (blended[1::2] + 0.25).clamp(-1, 1)
    torch.testing.assert_close(finished[1::2], bright, atol=1e-6, rtol=0)


def test_what_the_model_draws_in_a_hole_is_not_blended() -> None:
    """The low-res frames say nothing of it, so its motion is unknown."""
    clip, hole = scene(), torch.zeros(FRAMES, 1, SIZE[0] * 2, SIZE[1] * 2)
    hole[..., 24:72, 32:96] = 1
    settings = RestoreSettings(propagate="off", colour="none")
    one, other = (
        Restorer(small_video_model(), replace(settings, steady=reach))(clip, hole, range(FRAMES)) for reach in (1, 0)
    )
    inner = (..., slice(32, 64), slice(40, 88))  # beyond what is added smoothly
    assert torch.equal(one[inner], other[inner])
    assert not torch.equal(one, other)


def test_where_inpainting_alone_is_asked_for_neither_is_done() -> None:
    assert torch.equal(restored(RestoreSettings(steady=2, fidelity=1.0), 1), restored(RestoreSettings(), 1))


def test_finished_frames_stand_in_their_place_before_the_rest_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is blended with them and continues them, not what the model drew in their place."""
    given: list[Tensor] = []
    model, before = small_video_model(), scene(enlarged=2)[:2]
    finish = model.codec.finish

    def steadied(output: Tensor, *others: Any) -> Tensor:
        given.append(output.clone())
        return steady(output, *others)

    def finished(pixels: Tensor, evidence: Evidence) -> Tensor:
        given.append(pixels[0].clone())
        return finish(pixels, evidence)

    monkeypatch.setattr(restore, "steady", steadied)
    monkeypatch.setattr(model.codec, "finish", finished)
    hole = torch.zeros(FRAMES, 1, SIZE[0] * 2, SIZE[1] * 2)
    Restorer(model, RestoreSettings(colour="none"))(scene(), hole, range(FRAMES), before=before)
    assert len(given) == 2
    for pictures in given:
        assert torch.equal(pictures[:2], before)


def test_finished_frames_come_back_and_the_next_one_follows_them() -> None:
    settings = RestoreSettings(steady=1, fidelity=0.2, colour="none")
    before = scene(enlarged=2)[:2]
    result = restored(settings, before=before)
    assert torch.equal(result[:2], before)
    other = restored(settings, before=scene(9, enlarged=2)[:2])
    assert not math.isclose((result[2] - other[2]).abs().max().item(), 0, abs_tol=1e-6)
