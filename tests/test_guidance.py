"""Guidance against its equation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_video.diffusion.guidance import classifier_free_batched

CONDITION, NOTHING = torch.tensor([[1.0, -2.0, 3.0, 0.5], [0.0, 1.0, -1.0, 2.0]]), torch.zeros(2, 4)  # b c


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("timestep", [0.5, torch.tensor(0.5), torch.tensor([0.5, 0.25])])
def test_guidance_is_linear_in_the_scale(scale: float, timestep: Tensor | float) -> None:
    x = torch.randn(2, 3, 4, 5, 5)
    batches = []

    def denoise(x: Tensor, timestep: Tensor | float, condition: Tensor) -> Tensor:
        batches.append(len(x))
        level = torch.as_tensor(timestep).reshape(-1, 1, 1, 1, 1)
        return x * level + condition.reshape(-1, 1, 4, 1, 1) * (1 + x)

    guided = classifier_free_batched(denoise, CONDITION, NOTHING, scale)(x, timestep)
    assert batches == [2 if scale == 1.0 else 4]
    with_it, without = (denoise(x, timestep, condition) for condition in (CONDITION, NOTHING))
    assert torch.allclose(guided, (1 - scale) * without + scale * with_it, atol=1e-5)


def test_scale_one_calls_the_conditional_alone() -> None:
    def denoise(x: Tensor, timestep: float, condition: Tensor) -> Tensor:
        assert condition is CONDITION, "it must not be asked for the unconditional half"
        return 2.0 * x + 1.0

    x = torch.randn(2, 2, 3, 4, 4)
    assert torch.equal(classifier_free_batched(denoise, CONDITION, NOTHING, 1.0)(x, 0.5), 2.0 * x + 1.0)


def test_the_region_is_handed_on() -> None:
    def denoise(x: Tensor, timestep: float, condition: Tensor, region: str) -> Tensor:
        assert region == "here"
        return x

    x = torch.randn(2, 1, 1, 2, 2)
    for scale in (1.0, 3.0):
        assert torch.allclose(classifier_free_batched(denoise, CONDITION, NOTHING, scale)(x, 0.5, "here"), x)
