"""What key frames have, carried along the motion: which frames they are, where it lands, where it is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_video.motion import carry as carrying
from ldm_video.motion.alignment import AlignedClip
from ldm_video.motion.carry import Repair, frames_between, key_frames, sureness
from tests.model_support import rand_pixels

SIDE, SCALE, SPEED = 48, 2, 2


@pytest.mark.parametrize(
    ("count", "every", "keys"),
    [(1, 16, [0]), (8, 16, [4]), (32, 16, [8, 24]), (33, 16, [5, 16, 27]), (4, 1, [0, 1, 2, 3]), (5, 2, [0, 2, 4])],
)
def test_key_frames_stand_in_the_middle_of_equal_groups(count: int, every: int, keys: list[int]) -> None:
    assert key_frames(count, every) == keys


@pytest.mark.parametrize("every", [1, 3, 16])
def test_no_frame_is_far_from_a_key_frame(every: int) -> None:
    for count in range(1, 70):
        keys = key_frames(count, every)
        assert len(keys) == -(-count // every)
        assert max(min(abs(t - key) for key in keys) for t in range(count)) <= every // 2


@pytest.mark.parametrize(
    ("count", "keys", "between"), [(1, [0], []), (2, [1], [0]), (8, [4], [2, 6]), (32, [8, 24], [4, 12, 20, 28])]
)
def test_repairs_stand_half_way(count: int, keys: list[int], between: list[int]) -> None:
    assert frames_between(count, keys) == between


def test_no_frame_is_far_from_a_key_frame_or_a_repair() -> None:
    for count in range(1, 70):
        keys = key_frames(count, 16)
        told = [*keys, *frames_between(count, keys)]
        assert len(set(told)) == len(told) <= 3 * len(keys)
        assert max(min(abs(t - other) for other in told) for t in range(count)) <= 4


def pan(frames: int, side: int = SIDE, speed: int = SPEED) -> Tensor:
    """A texture that moves to the left by ``speed`` pixels a frame: ``t 3 side side``."""
    rough = rand_pixels(1, 3, side // 4, (side + frames * speed) // 4 + 1, seed=5)
    wide = torch.nn.functional.interpolate(rough, scale_factor=4, mode="bicubic").clamp(-1, 1)[0]
    return torch.stack([wide[..., t * speed : t * speed + side] for t in range(frames)])


def carry(values: Tensor, keys: list[int], guide: Tensor, hidden: Tensor) -> Tensor:
    """What every frame is shown, as far as it is sure."""
    return told(AlignedClip(guide, hidden), dict(zip(keys, values, strict=True)))


def told(clip: AlignedClip, pictures: dict[int, Tensor], repairs: dict[int, Repair] | None = None) -> Tensor:
    return torch.stack([picture * sure for picture, sure in carrying.carry(clip, pictures, repairs)])


def test_it_moves_with_what_was_filmed() -> None:
    guide, values = pan(5), pan(5, SIDE * SCALE, SPEED * SCALE)
    carried = carry(values[[2]], [2], guide, torch.zeros(5, 1, SIDE, SIDE))
    inside = (..., slice(24, -24), slice(24, -24))
    assert torch.equal(carried[2], values[2])
    still = values[2].expand_as(values)
    for t in (0, 1, 3, 4):
        error, unmoved = ((x[t] - values[t])[inside].abs().mean() for x in (carried, still))
        assert error < 0.2 * unmoved


def test_what_has_moved_far_is_found_from_nearer_frames() -> None:
    """By a third of the picture: a search that begins at nothing does not find it."""
    guide = pan(9, speed=2 * SPEED)
    values = pan(9, SIDE * SCALE, 2 * SPEED * SCALE)
    carried = carry(values[[0]], [0], guide, torch.zeros(9, 1, SIDE, SIDE))
    inside = (..., slice(24, -24), slice(8, SCALE * (SIDE - 8 * 2 * SPEED) - 8))
    assert (carried[8] - values[8])[inside].abs().mean() < 0.25 * (values[0] - values[8])[inside].abs().mean()


def test_between_two_key_frames_the_nearer_one_counts_more() -> None:
    guide = pan(5, speed=0)
    values = torch.stack([torch.zeros(1, 96, 96), torch.ones(1, 96, 96)])
    carried = carry(values, [0, 4], guide, torch.zeros(5, 1, SIDE, SIDE))
    means = carried.mean(dim=(1, 2, 3))
    torch.testing.assert_close(means, torch.tensor([0, 0.25, 0.5, 0.75, 1]), atol=0.02, rtol=0)


def test_where_a_key_frame_shows_something_else_nothing_comes() -> None:
    guide = pan(6, speed=0)
    guide[5, :, :, 32:] = rand_pixels(3, SIDE, 16, seed=9).sign()
    carried = carry(torch.ones(1, 1, 96, 96), [5], guide, torch.zeros(6, 1, SIDE, SIDE))
    assert carried[0, ..., :54].mean() > 0.9
    assert carried[0, ..., 72:].mean() < 0.25


def test_the_other_key_frame_steps_in() -> None:
    """What one of two key frames hides comes from the other one alone, in full."""
    guide, hidden = pan(3, speed=0), torch.zeros(3, 1, SIDE, SIDE)
    hidden[2, :, :, 24:] = 1
    values = torch.stack([torch.ones(1, 96, 96), 3 * torch.ones(1, 96, 96)])
    carried = carry(values, [0, 2], guide, hidden)[1, 0]
    np.testing.assert_allclose(carried[:, :36], 2, atol=0.1)
    np.testing.assert_allclose(carried[:, 60:], 1, atol=0.1)


def test_nothing_is_carried_to_what_is_hidden() -> None:
    guide, hidden = pan(3, speed=0), torch.zeros(3, 1, SIDE, SIDE)
    hidden[0, :, 12:36, 12:36] = 1
    carried = carry(torch.ones(1, 1, 96, 96), [2], guide, hidden)
    assert carried[0, :, 30:66, 30:66].abs().max() < 0.05
    assert carried[1, :, 30:66, 30:66].min() > 0.9


def test_repairs_show_what_key_frames_do_not_and_nothing_else() -> None:
    """What appears beside a still half is carried from the frame that was repaired to its neighbour."""
    guide, nothing = pan(5, speed=0), torch.zeros(5, 1, SIDE, SIDE)
    guide[:2, :, :, 24:] = rand_pixels(3, SIDE, 24, seed=9).sign()
    clip, key = AlignedClip(guide, nothing), {4: torch.ones(1, 96, 96)}
    (sure,) = sureness(clip, [1], [4])
    assert sure[:, :12].mean() > 0.95
    assert sure[:, 28:].mean() < 0.25
    shown = torch.ones(96, 96)
    shown[:48] = 0
    made = told(clip, key, {1: Repair(5 * torch.ones(1, 96, 96), shown)})
    alone = told(clip, key)
    for t in (0, 1):
        np.testing.assert_allclose(made[t, 0, :, :24], 1, atol=0.15)
        np.testing.assert_allclose(made[t, 0, 52:, 56:], (alone + 5 * (1 - alone))[t, 0, 52:, 56:], atol=0.2)
        torch.testing.assert_close(made[t, 0, :44], alone[t, 0, :44])
    assert made[1, 0, 52:, 56:].mean() > 4
    torch.testing.assert_close(made[2:], alone[2:], atol=0.1, rtol=0)


def test_a_repair_is_not_carried_past_a_key_frame() -> None:
    """In a still clip whose key frame shows something else only frames on the repair's side have it."""
    guide = rand_pixels(1, 3, SIDE, SIDE, seed=3).sign().repeat(9, 1, 1, 1)
    guide[4] = rand_pixels(3, SIDE, SIDE, seed=4).sign()
    clip = AlignedClip(guide, torch.zeros(9, 1, SIDE, SIDE))
    made = told(clip, {4: torch.zeros(1, 96, 96)}, {2: Repair(torch.ones(1, 96, 96), torch.ones(96, 96))})
    means = made.mean(dim=(1, 2, 3))
    assert means[:4].min() > 0.7
    assert means[4:].max() == 0


def test_a_repair_does_not_reach_a_neighbour_that_shows_something_else() -> None:
    """A frame of one picture, four of another, of which one is repaired, and the key frame of a third."""
    guide = torch.stack([rand_pixels(3, SIDE, SIDE, seed=seed).sign() for seed in (3, 4, 4, 4, 4, 5)])
    clip, everywhere = AlignedClip(guide, torch.zeros(6, 1, SIDE, SIDE)), torch.ones(96, 96)
    made = told(clip, {5: torch.zeros(1, 96, 96)}, {2: Repair(torch.ones(1, 96, 96), everywhere)})
    means = made.mean(dim=(1, 2, 3))
    assert means[1:5].min() > 0.7
    assert means[0] < 0.05


def test_of_two_repairs_the_nearer_one_is_shown() -> None:
    guide = rand_pixels(1, 3, SIDE, SIDE, seed=3).sign().repeat(8, 1, 1, 1)
    guide[7] = rand_pixels(3, SIDE, SIDE, seed=4).sign()
    clip, everywhere = AlignedClip(guide, torch.zeros(8, 1, SIDE, SIDE)), torch.ones(96, 96)
    repairs = {1: Repair(torch.zeros(1, 96, 96), everywhere), 5: Repair(torch.ones(1, 96, 96), everywhere)}
    means = told(clip, {7: torch.zeros(1, 96, 96)}, repairs).mean(dim=(1, 2, 3))
    assert means[[0, 1, 2]].max() < 0.05
    assert means[[4, 5, 6]].min() > 0.7
