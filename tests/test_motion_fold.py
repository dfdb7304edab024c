"""A motion module's entrance folded into one projection: what its norm takes away changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_video.models.motion_adapter import FOLDED, fold

WIDTH = 8


def layer() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (WIDTH,) if "norm" in name else (WIDTH, WIDTH) for name in (*FOLDED, "proj_in.bias")}
    shapes["proj_in.bias"] = (WIDTH,)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-4)


def test_what_is_alike_in_all_channels_is_taken_out_by_the_norm() -> None:
    given, moved = layer(), layer()
    moved["proj_in.weight"] += torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))  # to each output alike
    moved["proj_in.bias"] += 3.0
    assert_same(fold(given), fold(moved))


def test_the_strength_of_the_entrance_is_taken_out_by_the_norm() -> None:
    given, stronger = layer(), layer()
    stronger["proj_in.weight"] *= 5.0
    stronger["proj_in.bias"] *= 5.0
    assert_same(fold(given), fold(stronger))


def test_a_bias_that_differs_between_channels_makes_the_rest_smaller() -> None:
    """The norm divides by what both are together: with a bias of n times the deviation, by the root of 1 + n n."""
    given = layer()
    given["norm.bias"].zero_()
    given["proj_in.bias"].zero_()
    centred = given["proj_in.weight"] - given["proj_in.weight"].mean(dim=0)
    power = (centred * given["norm.weight"]).square().sum() / WIDTH
    alternating = torch.tensor([1.0, -1.0]).repeat(WIDTH // 2)
    biased = given | {"proj_in.bias": alternating * 3**0.5 * power.sqrt()}
    for name, value in fold(given).items():
        expected = value / 2 if "attention.to_" in name else value
        torch.testing.assert_close(fold(biased)[name], expected, atol=1e-4, rtol=1e-4)
