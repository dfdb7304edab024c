"""What key frames have, carried along the motion: which frames they are, where it lands, where it is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_video.core import carry as carrying
from ldm_video.core.carry import key_frames
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


def pan(frames: int, side: int = SIDE, speed: int = SPEED) -> Tensor:
    """A texture that moves to the left by ``speed`` pixels a frame: ``t 3 side side``."""
    rough = rand_pixels(1, 3, side // 4, (side + frames * speed) // 4 + 1, seed=5)
    wide = torch.nn.functional.interpolate(rough, scale_factor=4, mode="bicubic").clamp(-1, 1)[0]
    return torch.stack([wide[..., t * speed : t * speed + side] for t in range(frames)])


def carry(values: Tensor, keys: list[int], guide: Tensor, hidden: Tensor) -> Tensor:
    """What every frame is shown, as far as it is sure."""
    return torch.stack([picture * sure for picture, sure in carrying.carry(values, keys, guide, hidden)])


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
