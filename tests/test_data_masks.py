"""Hole families: shape, values, area, motion."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.masks import FAMILIES, sample_mask
from data.object_masks import ObjectMasks
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
    "dropout": (0.00005, 0.1),
    "flicker": (0.0001, 0.35),
    "logo": (0.0005, 0.2),
    "island": (0.35, 0.999),
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
        ("island", 10, 30),
        ("dropout", 40, 40),
        ("flicker", 40, 40),
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


def test_boxes_turn_back_at_the_frames_sides() -> None:
    """In a long clip they neither stick to a side, nor leave, nor come in again at the other one."""
    speed = 0.04 * min(SIZE)  # a frame, and three quarters as much again by chance
    moving = 0
    for seed in range(20):
        mask = FAMILIES["box"](np.random.default_rng(seed), 300, SIZE)[:, 0]
        assert mask.any(axis=(1, 2)).all()
        if not moves(mask[:2]):
            continue
        moving += 1
        assert moves(mask[200:])
        for seen in (mask.any(axis=1), mask.any(axis=2)):  # t w, t h
            ends = np.stack([seen.argmax(axis=1), seen[:, ::-1].argmax(axis=1)])
            assert np.abs(np.diff(ends)).max() <= 1.75 * speed + 1
    assert moving >= 5


def test_border_touches_a_side_and_keeps_the_middle() -> None:
    for mask in draws("border"):
        assert mask[:, 0, SIZE[0] // 2, SIZE[1] // 2].max() == 0
        sides = [mask[..., 0, :], mask[..., -1, :], mask[..., 0], mask[..., -1]]
        assert any(side.min() == 1 for side in sides)


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
def test_border_is_at_every_side_of_some_and_of_others_not(side: str) -> None:
    index = {"top": (0, slice(None)), "bottom": (-1, slice(None)), "left": (slice(None), 0), "right": (slice(None), -1)}
    covered = [mask[0, 0][index[side]].min() == 1 for mask in draws("border")]
    assert 0.4 * len(covered) < sum(covered) < 0.85 * len(covered)  # of a side 5 of 8 draws


def test_scratches_are_tall_and_thin() -> None:
    for mask in draws("scratch"):
        shown = mask[mask.any(axis=(1, 2, 3)), 0]
        assert shown.any(axis=2).sum(axis=1).max() >= 0.15 * SIZE[0]
        assert shown.sum(axis=2).max() <= 0.1 * SIZE[1]


def test_dropouts_are_wide_flat_and_new_in_every_frame() -> None:
    for mask in draws("dropout"):
        flat = cv2.connectedComponentsWithStats(mask[mask.any(axis=(1, 2, 3))][0, 0].astype(np.uint8))[2][1:]
        widths, heights = flat[:, cv2.CC_STAT_WIDTH], flat[:, cv2.CC_STAT_HEIGHT]
        assert heights.max() <= 6  # two streaks may touch
        assert np.all((widths > heights) | (flat[:, cv2.CC_STAT_LEFT] + widths >= SIZE[1]) | (widths <= 5))
        shown = [frame for frame in mask if frame.any()]
        assert all(not np.array_equal(a, b) for a, b in zip(shown[1:], shown[:-1], strict=True))


def test_flicker_is_a_steady_hole_on_some_frames_only() -> None:
    counts = set()
    for mask in draws("flicker"):
        shown = mask.any(axis=(1, 2, 3))
        counts.add(int(shown.sum()))
    assert counts == set(range(1, FRAMES))
    assert FAMILIES["flicker"](np.random.default_rng(0), 1, SIZE).any()


def test_every_share_of_the_frame_is_reached() -> None:
    """300 draws of all families alike: nothing, everything, and each tenth between."""
    rng = np.random.default_rng(0)
    shares = np.array([sample_mask(rng, 3, (48, 64), dict.fromkeys(FAMILIES, 1.0)).mean() for _ in range(300)])
    histogram, _ = np.histogram(shares, 10, (0, 1))
    assert np.all(histogram > 0)
    assert (shares == 0).any() and (shares == 1).any()


def test_other_families_leave_a_draw_as_it_was() -> None:
    """A seed's masks depend on the weights alone, not on what else could be drawn."""
    weights = {"blob": 1.0, "stroke": 1.0, "scratch": 0.5}
    few = {name: FAMILIES[name] for name in weights}
    for seed in range(20):
        one = sample_mask(np.random.default_rng(seed), 4, SIZE, weights)
        two = sample_mask(np.random.default_rng(seed), 4, SIZE, weights, few)
        assert np.array_equal(one, two)


@pytest.fixture
def silhouettes(tmp_path: Path) -> Path:
    """One clip of seven masks: a wide ellipse that goes to the right, 20 pixels a frame."""
    (tmp_path / "a").mkdir()
    for index in range(7):
        picture = np.zeros((240, 320), np.uint8)
        cv2.ellipse(picture, (70 + 20 * index, 120), (50, 25), 0, 0, 360, 255, -1)
        cv2.imwrite(str(tmp_path / "a" / f"{index:05d}.png"), picture)
    return tmp_path


def test_objects_keep_shape_and_motion(silhouettes: Path) -> None:
    family = ObjectMasks(silhouettes)
    areas, headings = [], set()
    for seed in range(80):
        mask = family(np.random.default_rng(seed), FRAMES, SIZE)
        assert mask.shape == (FRAMES, 1, *SIZE)
        assert mask.dtype == np.float32
        assert set(np.unique(mask)) <= {0.0, 1.0}
        inside = mask.any() and not (mask[..., [0, -1], :].any() or mask[..., [0, -1]].any())
        if not inside:
            continue
        areas.append(mask.mean())
        for frame in mask[:, 0]:
            (_, _, width, height, _) = cv2.connectedComponentsWithStats(frame.astype(np.uint8))[2][1]
            assert 1.5 < width / height < 2.6
        middles = np.array([np.nonzero(frame)[1].mean() for frame in mask[:, 0]])
        radius = (mask[0].sum() / np.pi / 2) ** 0.5  # of the short axis: 25 of the source's pixels
        headings.add(int(np.sign(middles[1] - middles[0])))
        # 20 pixels a frame or, at stride 2, 40; turned round at the end of the clip it may stand.
        steps = np.abs(np.diff(middles)) / radius
        assert np.all(np.minimum(np.abs(steps - 0.8), np.minimum(np.abs(steps - 1.6), steps)) < 0.25)
    assert len(areas) >= 10
    assert 0.015 < min(areas) < max(areas) < 0.31
    assert headings >= {-1, 1}


def test_objects_are_a_family_like_the_others(silhouettes: Path) -> None:
    families = {**FAMILIES, "object": ObjectMasks(silhouettes)}
    again = pickle.loads(pickle.dumps(families["object"]))
    drawn = sample_mask(np.random.default_rng(3), 30, SIZE, {"object": 1.0}, families)  # longer than the clip
    assert drawn.any()
    assert np.array_equal(drawn, sample_mask(np.random.default_rng(3), 30, SIZE, {"object": 1.0}, {"object": again}))
    with pytest.raises(UserError, match=r"option `objects`"):
        sample_mask(np.random.default_rng(0), 2, SIZE, {"object": 1.0})


def test_bad_folders_of_objects_are_named(silhouettes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        ObjectMasks(tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"CLIP/00000\.png"):
        ObjectMasks(tmp_path / "none")
    clip = silhouettes / "a"
    (tmp_path / "none").rmdir()
    cv2.imwrite(str(clip / "00003.png"), np.zeros((10, 10), np.uint8))
    with pytest.raises(UserError, match=r"00003\.png"):
        ObjectMasks(silhouettes)(np.random.default_rng(0), 12, SIZE)
    (clip / "00003.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"cannot read the mask .*00003\.png"):
        ObjectMasks(silhouettes)(np.random.default_rng(0), 12, SIZE)
    (clip / "00003.png").unlink()
    with pytest.raises(UserError, match=r"00004\.png where 00003\.png should be"):
        ObjectMasks(silhouettes)


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
