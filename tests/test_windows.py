"""Windows and tiles: they cover, have one size, weigh one, and leave a pointwise denoiser as it is."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldm_video.diffusion.windows import (
    Region,
    Window,
    even_size,
    merge,
    merge_tiles,
    ramp,
    split,
    tiled,
    tiles,
    windowed,
)


@st.composite
def grids(draw: st.DrawFn, longest: int = 120) -> tuple[int, int, int, int]:
    """(length, size, overlap, offset)"""
    size = draw(st.integers(1, 30))
    return draw(st.integers(1, longest)), size, draw(st.integers(0, size - 1)), draw(st.integers(0, 60))


@given(grids())
def test_windows_cover_with_one_size_and_enough_overlap(grid: tuple[int, int, int, int]) -> None:
    length, size, overlap, offset = grid
    windows = split(length, size, overlap, offset)
    covered = set().union(*(range(window.start, window.stop) for window in windows))
    assert covered == set(range(length))
    assert {window.size for window in windows} == {min(size, length)}
    for left, right in pairwise(windows):
        assert left.start < right.start
        assert left.stop - right.start >= overlap
    # No more than the plain grid needs, and one for the move.
    needed = 1 if length <= size else -(-(length - size) // (size - overlap)) + 1
    assert len(windows) <= needed + (offset > 0)


def test_the_tail_is_shifted_in() -> None:
    assert split(10, 4, 1) == [Window(0, 4), Window(3, 7), Window(6, 10)]
    assert split(11, 4, 1) == [Window(0, 4), Window(3, 7), Window(6, 10), Window(7, 11)]
    assert split(3, 4, 1) == [Window(0, 3)]


@given(grids())
def test_even_windows_are_as_many_and_as_small_as_can_be(grid: tuple[int, int, int, int]) -> None:
    length, most, overlap, _ = grid
    size = even_size(length, most, overlap)
    windows = split(length, size, overlap)
    assert overlap < size <= most
    assert len(windows) == len(split(length, most, overlap))
    assert len(windows) == 1 or len(windows) * size < length + overlap * (len(windows) - 1) + len(windows)
    assert even_size(25, 12, 2) == 10  # 30 frames are seen in place of 36


def test_the_staggered_grid_moves_by_the_offset() -> None:
    assert split(16, 8, 4, 2) == [Window(0, 8), Window(2, 10), Window(6, 14), Window(8, 16)]
    inner = {window.start for window in split(100, 8, 4)} & {window.start for window in split(100, 8, 4, 2)}
    assert inner == {0, 92}


@given(grids())
def test_weights_are_positive_and_sum_to_one_everywhere(grid: tuple[int, int, int, int]) -> None:
    windows = split(*grid)
    total = torch.zeros(grid[0], dtype=torch.float64)
    for window, weight in zip(windows, ramp(windows), strict=True):
        assert weight.shape == (window.size,) and (weight > 0).all()
        total[window.slice] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_ramps_are_linear_and_flat_at_the_ends() -> None:
    first, second = ramp([Window(0, 6), Window(3, 9)])
    assert first.tolist() == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25])
    assert second.tolist() == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_a_tail_that_overlaps_more_gets_a_longer_ramp() -> None:
    weights = ramp(split(11, 4, 1))  # 0-4, 3-7, 6-10, 7-11
    assert weights[2].tolist() == pytest.approx([0.5, 0.75, 0.5, 0.25])
    assert weights[3].tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_three_windows_share_by_their_ramps() -> None:
    first, second, third = ramp([Window(0, 3), Window(1, 4), Window(2, 5)])
    # At position 2 the ramps over overlaps of 2 are at 1/3, 2/3 and 1/3.
    assert [first[2].item(), second[1].item(), third[0].item()] == pytest.approx([0.25, 0.5, 0.25])


@given(grids(), st.sampled_from([0, 1, -1]))
def test_merging_what_was_cut_gives_it_back(grid: tuple[int, int, int, int], dim: int) -> None:
    windows = split(*grid)
    shape = [2, 3, 2]
    shape[dim] = grid[0]
    whole = torch.randn(shape)
    parts = (whole.narrow(dim, window.start, window.size) for window in windows)
    assert torch.allclose(merge(parts, windows, dim), whole, atol=1e-6)


@given(grids(60), grids(60))
def test_tiles_weigh_one_everywhere_and_merge_back(down: tuple[int, ...], across: tuple[int, ...]) -> None:
    (height, tile_height, v_overlap, v_offset), (width, tile_width, h_overlap, h_offset) = down, across
    grid = tiles(height, width, (tile_height, tile_width), (v_overlap, h_overlap), (v_offset, h_offset))
    total = torch.zeros(height, width)
    for tile in grid:
        total[tile.rows.slice, tile.cols.slice] += tile.weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)
    picture = torch.randn(2, height, width)
    parts = (picture[:, tile.rows.slice, tile.cols.slice] for tile in grid)
    assert torch.allclose(merge_tiles(parts, grid), picture, atol=1e-5)


def test_half_precision_parts_are_summed_in_float32() -> None:
    windows = split(50, 8, 7)
    merged = merge([torch.full((8,), 0.7, dtype=torch.bfloat16) for _ in windows], windows, 0)
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, torch.full((50,), 0.7, dtype=torch.bfloat16))


CLIP = (2, 19, 3, 13, 17)  # b t c h w


def pointwise(evidence: Tensor) -> tuple[object, list[Region]]:
    """A denoiser that works on each value by itself and adds the evidence of its own place; and its log of regions."""
    regions: list[Region] = []

    def denoise(x: Tensor, timestep: float, region: Region) -> Tensor:
        regions.append(region)
        return torch.tanh(x) * timestep + region.of(evidence)

    return denoise, regions


@pytest.mark.parametrize("cut", ["time", "space", "time of space", "space of time"])
def test_a_pointwise_denoiser_is_unchanged_by_cutting(cut: str) -> None:
    x, evidence = torch.randn(CLIP), torch.randn(CLIP)
    denoise, regions = pointwise(evidence)
    run = {
        "time": lambda: windowed(denoise, 6, 2),
        "space": lambda: tiled(denoise, (5, 6), (2, 3)),
        "time of space": lambda: windowed(tiled(denoise, (5, 6), (2, 3)), 6, 2),
        "space of time": lambda: tiled(windowed(denoise, 6, 2), (5, 6), (2, 3)),
    }[cut]()
    for timestep in (0.9, 0.5, 0.1):
        assert torch.allclose(run(x, timestep), torch.tanh(x) * timestep + evidence, atol=1e-6)
    assert len(regions) > 3


def test_a_clip_that_fits_is_run_once() -> None:
    x = torch.randn(CLIP)
    denoise, regions = pointwise(torch.zeros(CLIP))
    windowed(tiled(denoise, (64, 64), (8, 8)), 32, 8)(x, 0.5)
    assert regions == [Region.whole(x)]


def starts(run: object, regions: list[Region], timestep: float | Tensor) -> list[int]:
    regions.clear()
    run(torch.zeros(1, 40, 1, 1, 1), timestep)
    return [region.frames.start for region in regions]


def test_the_grid_alternates_from_step_to_step_and_restarts_with_a_run() -> None:
    denoise, regions = pointwise(torch.zeros(1, 40, 1, 1, 1))
    run = windowed(denoise, 8, 4)
    plain, moved = [w.start for w in split(40, 8, 4)], [w.start for w in split(40, 8, 4, 2)]
    for _ in range(2):  # two runs of an odd number of steps
        assert starts(run, regions, 999.0) == plain
        assert starts(run, regions, torch.tensor(700)) == moved
        assert starts(run, regions, torch.tensor([700, 700])) == moved  # guidance, or a solver's second stage
        assert starts(run, regions, 300.0) == plain


@pytest.mark.parametrize(("length", "size", "overlap"), [(0, 4, 1), (5, 0, 0), (5, 4, 4), (5, 4, -1)])
def test_impossible_grids_are_refused(length: int, size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap < size"):
        split(length, size, overlap)
