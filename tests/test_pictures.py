"""Reading and smoothing pictures: the two ways that depend on the device agree."""

from __future__ import annotations

import pytest
import torch

from ldm_video.motion import pictures
from ldm_video.motion.pictures import grid_of, read_at, smooth
from tests.model_support import rand_pixels

SIZE = (37, 52)


def test_points_where_the_pixels_are_give_the_picture() -> None:
    picture = rand_pixels(3, *SIZE)
    torch.testing.assert_close(read_at(picture, grid_of(SIZE, picture.device)), picture, atol=1e-6, rtol=0)


def test_points_are_x_and_y() -> None:
    picture = rand_pixels(3, *SIZE)
    moved = read_at(picture, grid_of(SIZE, picture.device) + torch.tensor([2.0, -1.0])[:, None, None])
    torch.testing.assert_close(moved[:, 1:, :-2], picture[:, :-1, 2:], atol=1e-6, rtol=0)


def test_devices_read_alike_within_and_beyond_the_border() -> None:
    picture = rand_pixels(3, *SIZE)
    points = grid_of(SIZE, picture.device) + 4 * rand_pixels(2, *SIZE, seed=1)
    # OpenCV rounds points to a 32nd of a pixel: numbers that it holds exactly.
    points = (points * 32).round() / 32
    here, there = pictures._read_with_opencv(picture, points), pictures._read_with_torch(picture, points)
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sigma", [(1.4, 1.4), (0.7, 1.9)])
def test_devices_smooth_alike(sigma: tuple[float, float]) -> None:
    picture = rand_pixels(3, *SIZE)
    here, there = pictures._smooth_with_opencv(picture, sigma), pictures._smooth_with_torch(picture, sigma)
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
    assert smooth(picture, sigma).std() < picture.std()


def test_smoothing_goes_as_far_down_and_across_as_it_is_told() -> None:
    spot = torch.zeros(1, 41, 41)
    spot[:, 20, 20] = 1
    smoothed = smooth(spot, (1.0, 3.0))[0]
    at = torch.arange(41.0) - 20
    spreads = [(smoothed.sum(axis) * at.square()).sum().sqrt().item() for axis in (1, 0)]  # down, across
    assert spreads == pytest.approx([1.0, 3.0], rel=0.05)
