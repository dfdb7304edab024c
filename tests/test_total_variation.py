"""Edges go on through a hole, what is smooth goes on smoothly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_video.core.push_pull import push_pull
from ldm_video.core.total_variation import continue_edges
from ldm_video.motion.alignment import AlignedClip
from tests.model_support import rand_pixels


def with_box(size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """``1 1 h w``: 0 in the box."""
    known = torch.ones(1, 1, *size)
    known[..., rows, columns] = 0
    return known


def slanted_edge(height: int, width: int) -> Tensor:
    """Light left of a slanted line, dark right of it: ``1 3 h w``."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    side = torch.sigmoid(2 * (width / 2 - x + (y - height / 2) / 3))
    return torch.stack([side - 0.5, 0.5 - side, side * 0.6])[None]


def error(made: Tensor, truth: Tensor, known: Tensor) -> float:
    return ((made - truth).square() * (1 - known)).sum().item() / (3 * (1 - known).sum().item())


@pytest.mark.parametrize(
    "rows, columns, share",
    [(slice(20, 32), slice(24, 50), 0.35), (slice(10, 40), slice(5, 60), 0.75)],
    ids=["narrow", "wide"],
)
def test_an_edge_goes_on(rows: slice, columns: slice, share: float) -> None:
    """Straight from one end to the other; the farther, the softer."""
    truth, known = slanted_edge(48, 72), with_box((48, 72), rows, columns)
    made = continue_edges(truth * known, known)
    assert error(made, truth, known) < share * error(push_pull(truth * known, known), truth, known)


def test_a_gradient_goes_on_without_steps() -> None:
    y, x = torch.meshgrid(torch.linspace(-0.4, 0.4, 40), torch.linspace(-0.5, 0.5, 60), indexing="ij")
    truth, known = torch.stack([x, y, x + y])[None] / 2, with_box((40, 60), slice(10, 28), slice(15, 45))
    made = continue_edges(truth * known, known)
    assert (made - truth).abs().max() < 0.03
    assert made.diff(dim=-1).abs().max() < 2 * truth.diff(dim=-1).abs().max()


@pytest.mark.parametrize("axis", [2, 3])
def test_a_hole_at_one_side_is_filled_as_one_at_the_other(axis: int) -> None:
    """Nothing lies beyond the first row and column, as beyond the last. The picture varies along one axis only: forward
    differences along two are no mirror image of themselves.
    """
    picture, known = rand_pixels(32).expand(1, 3, 32, 32), with_box((32, 32), slice(0, 32), slice(0, 8))
    if axis == 2:
        picture, known = picture.mT, known.mT
    mirrored = continue_edges(picture.flip(axis), known.flip(axis)).flip(axis)
    torch.testing.assert_close(continue_edges(picture, known), mirrored, atol=1e-6, rtol=0)


def test_what_is_known_stays_and_the_paint_is_not_read() -> None:
    picture, known = rand_pixels(2, 3, 30, 40).double(), with_box((30, 40), slice(8, 20), slice(12, 30))
    made = continue_edges(picture, known)
    assert made.dtype == torch.float64
    assert torch.equal(made * known, picture * known)
    assert torch.equal(made, continue_edges(torch.where(known > 0, picture, 0.7), known))
    assert made.abs().max() <= 1


def test_no_hole_is_filled_beyond_black_and_white() -> None:
    """The least total variation lies between what is known around it; beyond, a byte would wrap from black to white."""
    picture, known = torch.full((2, 3, 60, 90), -1.0), with_box((60, 90), slice(20, 40), slice(30, 60))
    picture[..., 46:] = 1
    made = continue_edges(picture, known.expand(2, -1, -1, -1))
    assert made.min() >= -1 and made.max() <= 1
    grey = torch.from_numpy(np.stack(AlignedClip(made, 1 - known.expand(2, -1, -1, -1))._grey)).float() / 127.5 - 1
    assert (grey - made.mean(dim=1)).abs().max() < 0.02


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 5), (2, 300), (33, 17), (64, 9)], ids=str)
@pytest.mark.parametrize("share", ["everything", "half", "a pixel", "nothing"])
def test_any_size_and_any_hole(size: tuple[int, int], share: str) -> None:
    picture, known = rand_pixels(1, 3, *size), torch.ones(1, 1, *size)
    if share == "everything":
        known[:] = 0
    elif share == "half":
        known[..., : (size[1] + 1) // 2] = 0
    elif share == "a pixel":
        known[..., 0, 0] = 0
    made = continue_edges(picture, known)
    assert made.shape == picture.shape and bool(made.isfinite().all())
    assert torch.equal(made * known, picture * known)
    if not known.any():
        assert not made.any()


def test_one_frame_of_a_clip_may_have_no_hole_or_nothing_else() -> None:
    picture = rand_pixels(3, 3, 24, 24)
    known = torch.ones(3, 1, 24, 24)
    known[1, :, 5:15, 5:15] = 0
    known[2] = 0
    made = continue_edges(picture, known)
    assert torch.equal(made[0], picture[0])
    assert torch.equal(made[1] * known[1], picture[1] * known[1])
    assert bool(made[1].isfinite().all()) and not made[2].any()


def test_a_hole_becomes_the_same_in_any_company() -> None:
    """Beside other frames, and beside other holes of its frame that are far away."""
    picture, known = rand_pixels(3, 3, 40, 60), torch.ones(3, 1, 40, 60)
    known[0, :, 10:14, 10:20] = 0
    known[1] = 0
    known[2, :, 5:35, 20:50] = 0
    made = continue_edges(picture, known)
    for frame in range(3):
        assert torch.equal(made[frame], continue_edges(picture[frame][None], known[frame][None])[0])
    known[0, :, 30:36, 48:58] = 0
    beside = continue_edges(picture[:1], known[:1])
    assert torch.equal(beside[..., :28, :40], made[:1, :, :28, :40])
