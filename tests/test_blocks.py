"""Blocks of a picture that are chosen: all of them, nothing else, in few boxes."""

from __future__ import annotations

import numpy as np
import pytest

from ldm_video.models.blocks import Box, boxes_below


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (3, 2), (1, 9)])
def test_boxes_are_the_blocks_whose_mean_is_low(size: tuple[int, int]) -> None:
    for seed in range(20):
        values = np.random.default_rng(seed).random(size)
        covered = np.zeros(size, dtype=int)
        for box in boxes_below(values, 3, 0.5):
            covered[box.slices()] += 1
        for top in range(0, size[0], 3):
            for left in range(0, size[1], 3):
                block = (slice(top, top + 3), slice(left, left + 3))
                assert (covered[block] == int(values[block].mean() < 0.5)).all()


def test_neighbours_are_one_box() -> None:
    values = np.ones((12, 16))
    values[4:12, 4:12] = 0
    assert boxes_below(values, 4, 0.5) == [Box(4, 12, 4, 12)]
    assert boxes_below(np.zeros((12, 16)), 4, 0.5) == [Box(0, 12, 0, 16)]
    assert boxes_below(np.ones((12, 16)), 4, 0.5) == []


def test_rows_of_other_columns_are_other_boxes() -> None:
    values = np.ones((4, 6))
    values[:2, :4] = values[2:, 2:] = 0
    assert boxes_below(values, 2, 0.5) == [Box(0, 2, 0, 4), Box(2, 4, 2, 6)]


def test_no_more_than_the_lowest_are_chosen() -> None:
    values = np.arange(16.0).reshape(4, 4)[::-1]
    assert boxes_below(values, 1, 100, most=0.25) == [Box(3, 4, 0, 4)]
    assert boxes_below(values, 1, 100, most=0.45) == [Box(2, 3, 0, 3), Box(3, 4, 0, 4)]
    assert boxes_below(values, 1, 2, most=0.25) == [Box(3, 4, 0, 2)]
    assert boxes_below(values, 1, 100, most=0.05) == []


def test_a_box_grows_as_far_as_the_grid_goes() -> None:
    assert Box(1, 3, 4, 6).grown(2, (6, 7)) == Box(0, 5, 2, 7)
    assert Box(1, 3, 4, 6).slices(4) == (slice(4, 12), slice(16, 24))
