"""Hole families: shape, values, area, motion."""

from __future__ import annotations

import numpy as np
import pytest

from data.masks import FAMILIES, moving_mask_of_area, sample_mask
from ldm_video.core.errors import UserError

SIZE = (72, 128)
FRAMES = 6
# family -> smallest and largest share of the frames that any draw may cover
AREAS = {
    "blob": (0.005, 0.35),
    "moving_blob": (0.003, 0.35),
    "stroke": (0.0005, 0.6),
    "box": (0.002, 0.3),
    "ellipse": (0.002, 0.3),
    "scratch": (0.0002, 0.12),
    "logo": (0.0005, 0.2),
    "border": (0.04, 0.9),
    "full": (1.0, 1.0),
    "empty": (0.0, 0.0),
}


def draws(family: str, count: int = 40) -> list[np.ndarray]:
    return [FAMILIES[family](np.random.default_rng([7, i]), FRAMES, SIZE) for i in range(count)]


def moves(mask: np.ndarray) -> bool:
    return any(not np.array_equal(a, b) for a, b in zip(mask[1:], mask[:-1], strict=True))


def test_every_family_has_stated_limits() -> None:
    assert set(AREAS) == set(FAMILIES)


@pytest.mark.parametrize("family", sorted(AREAS))
def test_shape_values_and_area(family: str) -> None:
    low, high = AREAS[family]
    for mask in draws(family):
        assert mask.shape == (FRAMES, 1, *SIZE)
        assert mask.dtype == np.float32
        assert set(np.unique(mask)) <= {0.0, 1.0}
        assert low <= mask.mean() <= high


@pytest.mark.parametrize(
    ("family", "least", "most"),
    [
        ("moving_blob", 40, 40),
        ("scratch", 20, 40),
        ("blob", 10, 30),
        ("box", 10, 30),
        ("ellipse", 10, 30),
        ("stroke", 10, 30),
        ("logo", 0, 0),
        ("border", 0, 0),
    ],
)
def test_how_many_of_40_draws_move(family: str, least: int, most: int) -> None:
    assert least <= sum(moves(mask) for mask in draws(family)) <= most


def test_moving_blobs_do_not_jump() -> None:
    """Where the whole blob is in the frame, its centre goes at most 10 % of the short side a frame."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    steps = []
    for mask in draws("moving_blob"):
        inside = not (mask[..., [0, -1], :].any() or mask[..., [0, -1]].any())
        if inside:
            centres = np.array([[(m * rows).sum() / m.sum(), (m * columns).sum() / m.sum()] for m in mask[:, 0]])
            steps += list(np.linalg.norm(np.diff(centres, axis=0), axis=1))
    assert len(steps) >= 20
    assert np.median(steps) > 0.2
    assert max(steps) < 0.1 * min(SIZE)


@pytest.mark.parametrize("area", [0.02, 0.08, 0.3])
@pytest.mark.parametrize("size", [(64, 64), (180, 320)])
def test_moving_mask_has_the_area_asked_for(area: float, size: tuple[int, int]) -> None:
    for seed in range(10):
        mask = moving_mask_of_area(np.random.default_rng(seed), 8, size, area)
        assert mask.shape == (8, 1, *size)
        assert set(np.unique(mask)) == {0.0, 1.0}
        assert abs(mask.mean() / area - 1) < 0.15
        assert moves(mask)


def test_border_touches_a_side_and_keeps_the_middle() -> None:
    for mask in draws("border"):
        assert mask[:, 0, SIZE[0] // 2, SIZE[1] // 2].max() == 0
        sides = [mask[..., 0, :], mask[..., -1, :], mask[..., 0], mask[..., -1]]
        assert any(side.min() == 1 for side in sides)


def test_scratches_are_tall_and_thin() -> None:
    for mask in draws("scratch"):
        shown = mask[mask.any(axis=(1, 2, 3)), 0]
        assert shown.any(axis=2).sum(axis=1).max() >= 0.15 * SIZE[0]
        assert shown.sum(axis=2).max() <= 0.1 * SIZE[1]


def test_families_are_drawn_in_proportion() -> None:
    rng = np.random.default_rng(0)
    masks = [sample_mask(rng, 1, (8, 8), {"full": 3.0, "empty": 1.0, "blob": 0.0}) for _ in range(400)]
    assert abs(np.mean([m.mean() for m in masks]) - 0.75) < 0.07


def test_a_draw_is_a_function_of_the_generator() -> None:
    weights = dict.fromkeys(FAMILIES, 1.0)
    first, again = ([sample_mask(np.random.default_rng(s), 4, SIZE, weights) for s in range(12)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("weights", [{"blobs": 1.0}, {}, {"blob": 0.0}, {"blob": 1.0, "box": -0.5}])
def test_weights_that_cannot_be_drawn_from(weights: dict[str, float]) -> None:
    with pytest.raises(UserError, match="mask"):
        sample_mask(np.random.default_rng(0), 2, SIZE, weights)
