"""Holes are closed with what surrounds them: patterns go on, nothing is brought in from elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_video.core.push_pull import push_pull
from ldm_video.pipeline import exemplars
from ldm_video.pipeline.exemplars import complete
from tests.model_support import rand_pixels


def bricks(height: int, width: int) -> Tensor:
    """A wall whose rows of bricks are offset: ``3 h w``."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    row = y // 5
    mortar = (y % 5 == 0) | ((x + 5 * (row % 2)) % 10 == 0)
    tint = 0.2 * torch.sin(2 * math.pi * x / 10)
    wall = torch.where(mortar, 0.8, -0.4 + tint)
    return torch.stack([wall, wall * 0.5, wall * 0.2 - 0.3])


def box(size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    hole = torch.zeros(1, *size)
    hole[:, rows, columns] = 1
    return hole


def error(made: Tensor, truth: Tensor, hole: Tensor) -> float:
    return ((made - truth).square() * hole).sum().item() / (3 * hole.sum().item())


@pytest.mark.parametrize("compared", [2**24, 2**16], ids=["all compared", "handed on by neighbours"])
@pytest.mark.parametrize(
    "rows, columns",
    [(slice(30, 50), slice(40, 64)), (slice(0, 20), slice(40, 64)), (slice(30, 50), slice(80, 100))],
    ids=["inside", "at the top", "in a corner"],
)
def test_a_pattern_goes_on(rows: slice, columns: slice, compared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplars, "_EXHAUSTIVE_PAIRS", compared)
    truth, hole = bricks(72, 100), box((72, 100), rows, columns)
    painted = torch.where(hole.bool(), 0.0, truth)
    made = complete(painted, hole)
    smooth = push_pull(painted[None], 1 - hole[None])[0]
    assert error(made, truth, hole) < 0.5 * error(smooth, truth, hole)


def test_the_wall_is_closed_brick_by_brick() -> None:
    truth, hole = bricks(72, 100), box((72, 100), slice(30, 46), slice(40, 60))
    made = complete(torch.where(hole.bool(), 0.0, truth), hole)
    assert error(made, truth, hole) < 0.02  # the wall's own variance is 0.2


def test_what_stands_elsewhere_is_not_brought_in() -> None:
    frame = 0.1 * rand_pixels(3, 60, 90)
    frame[0, 5:25, 5:25] += 0.9  # a red box of a texture of its own
    frame[2, 40:] += 0.5  # blue ground
    hole = box((60, 90), slice(25, 50), slice(50, 75))
    made = complete(frame, hole)
    red, blue = made[0][hole[0].bool()], made[2]
    assert red.max() < 0.4
    assert blue[45:50, 50:75].mean() > 0.35 and blue[25:30, 50:75].mean() < 0.15


def test_all_else_stays_and_nothing_is_drawn_at_random() -> None:
    frame, hole = rand_pixels(3, 50, 70).double(), box((50, 70), slice(20, 35), slice(30, 50))
    made = complete(frame, hole)
    assert made.dtype == torch.float64
    assert torch.equal(made * (1 - hole), frame * (1 - hole))
    assert made.abs().max() <= 1
    assert torch.equal(made, complete(frame, hole))
    assert torch.equal(complete(torch.where(hole.bool(), 0.7, frame), hole), made)  # the paint is not read
    assert torch.equal(complete(frame, torch.zeros_like(hole)), frame)


@pytest.mark.parametrize("size", [(1, 1), (5, 5), (7, 7), (8, 300), (21, 21), (64, 9)], ids=str)
@pytest.mark.parametrize("share", ["everything", "half", "a pixel"])
def test_any_size_and_any_hole(size: tuple[int, int], share: str) -> None:
    frame, hole = rand_pixels(3, *size), torch.ones(1, *size)
    if share != "everything":
        hole[:, :, (size[1] + 1) // 2 if share == "half" else 1 :] = 0
    if share == "a pixel":
        hole[:, 1:] = 0
    made = complete(frame, hole)
    assert made.shape == frame.shape and bool(made.isfinite().all())
    assert torch.equal(made * (1 - hole), frame * (1 - hole))
    if share == "everything":
        assert not made.any()


def test_what_is_there_already_is_drawn_again_from_the_frame() -> None:
    truth, hole = bricks(72, 100), box((72, 100), slice(30, 46), slice(40, 60))
    sharpened = truth * 1.3 + 0.1 * rand_pixels(3, 72, 100)  # what making and bringing down again does
    again = complete(truth * (1 - hole), hole, start=sharpened)
    assert error(again, truth, hole) < 0.5 * error(sharpened, truth, hole)
    shifted = complete(truth * (1 - hole), hole, start=truth.roll(3, dims=2))
    assert error(shifted, truth.roll(3, dims=2), hole) < error(shifted, truth, hole)  # it is kept, not found anew


def test_slanted_brightness_goes_on_without_a_step_at_the_rim() -> None:
    """All that is left is darker than the rim; the first column filled is less off it than the last one known."""
    slope, first = 0.02, 70
    truth, hole = (slope * (torch.arange(90) - 45.0)).expand(3, 48, 90), box((48, 90), slice(0, 48), slice(first, 90))
    made = complete(truth * (1 - hole), hole)
    assert (made[..., first] - truth[..., first - 1]).abs().max() < slope


def test_the_fill_keeps_half_of_what_the_smooth_colours_it_begins_with_differ_by() -> None:
    """In a black frame that differs in colour only: exactly, farther from the rim than colours are smoothed."""
    hole = box((72, 100), slice(16, 56), slice(30, 70))
    made = complete(torch.zeros(3, 72, 100), hole, start=torch.full((3, 72, 100), 0.4))
    torch.testing.assert_close(made[:, 24:48, 38:62], torch.full((3, 24, 24), 0.2), atol=1e-5, rtol=0)
    assert made.min() >= 0 and made.max() < 0.2 + 1e-5


def test_a_match_is_handed_on_to_all_neighbours_at_its_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """One patch knows where the twin of the hole's surroundings lies; steps of 1 and 3, twice, reach 8 pixels."""
    monkeypatch.setattr(exemplars, "_EXHAUSTIVE_PAIRS", 1)
    frame, offset = rand_pixels(1, 3, 40, 70), torch.tensor([7, 35])
    frame[..., 17:37, 40:60] = frame[..., 10:30, 5:25]
    grid = exemplars._make_grid(frame, box((40, 70), slice(17, 23), slice(12, 18))[None], (40, 70))
    grid.first = False
    grid.found[(grid.targets == torch.tensor([20, 15])).all(dim=1)] += offset
    grid.search()
    assert torch.equal(grid.found, grid.targets + offset)


def test_a_long_narrow_hole_is_closed_too() -> None:
    """On the first grid all patches are compared, however many there are."""
    truth, hole = bricks(240, 400), box((240, 400), slice(100, 112), slice(20, 380))
    painted = torch.where(hole.bool(), 0.0, truth)
    smooth = push_pull(painted[None], 1 - hole[None])[0]
    assert error(complete(painted, hole), truth, hole) < 0.5 * error(smooth, truth, hole)
