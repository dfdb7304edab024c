"""Guidance against its equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_video.diffusion.guidance import classifier_free, classifier_free_batched


def conditional(x: Tensor, timestep: Tensor | float) -> Tensor:
    return 2.0 * x + 1.0


def unconditional(x: Tensor, timestep: Tensor | float) -> Tensor:
    return x * timestep


def never(x: Tensor, timestep: Tensor | float) -> Tensor:
    raise AssertionError("the unconditional denoiser must not be called")


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_guidance_is_linear_in_the_scale(scale: float) -> None:
    x = torch.randn(2, 3, 4, 5, 5)
    guided = classifier_free(conditional, unconditional, scale)(x, 0.5)
    assert torch.allclose(guided, (1 - scale) * (0.5 * x) + scale * (2 * x + 1), atol=1e-5)


def test_scale_one_calls_the_conditional_alone() -> None:
    x = torch.randn(1, 2, 3, 4, 4)
    assert torch.equal(classifier_free(conditional, never, 1.0)(x, 0.5), conditional(x, 0.5))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rescale_brings_the_deviation_back(share: float) -> None:
    x = torch.randn(3, 2, 3, 8, 8) * torch.tensor([0.5, 1.0, 3.0]).reshape(3, 1, 1, 1, 1)
    plain = classifier_free(conditional, unconditional, 5.0)(x, 0.5)
    rescaled = classifier_free(conditional, unconditional, 5.0, rescale=share)(x, 0.5)
    for one, before, wanted in zip(rescaled, plain, conditional(x, 0.5), strict=True):
        assert torch.allclose(one.std(), share * wanted.std() + (1 - share) * before.std(), rtol=1e-4)
        assert torch.allclose(one / one.std(), before / before.std(), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_what_does_not_deviate_has_nothing_to_bring_back(dtype: torch.dtype) -> None:
    """Equations 15 and 16 with a deviation of 0 over 0: the guided output is left to its other share."""
    flat = torch.full((1, 2, 4, 8, 8), 0.5, dtype=dtype)
    guided = classifier_free(lambda x, t: flat, lambda x, t: flat, 5.0, rescale=0.75)(flat, 0.5)
    assert torch.equal(guided, 0.25 * flat)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("timestep", [0.5, torch.tensor(0.5), torch.tensor([0.5, 0.25])])
def test_one_batched_call_equals_two(scale: float, timestep: Tensor | float) -> None:
    x = torch.randn(2, 3, 4, 5, 5)
    condition, nothing = torch.randn(2, 4), torch.zeros(2, 4)
    batches = []

    def denoise(x: Tensor, timestep: Tensor | float, condition: Tensor) -> Tensor:
        batches.append(len(x))
        level = torch.as_tensor(timestep).reshape(-1, 1, 1, 1, 1)
        return x * level + condition.reshape(-1, 1, 4, 1, 1)

    guided = classifier_free_batched(denoise, condition, nothing, scale, rescale=0.3)(x, timestep)
    two = classifier_free(
        lambda x, t: denoise(x, t, condition), lambda x, t: denoise(x, t, nothing), scale, rescale=0.3
    )(x, timestep)
    assert torch.allclose(guided, two, atol=1e-6)
    assert batches[0] == (2 if scale == 1.0 else 4)


def test_the_region_is_handed_on() -> None:
    def denoise(x: Tensor, timestep: float, region: str) -> Tensor:
        assert region == "here"
        return x

    x = torch.randn(1, 1, 1, 2, 2)
    assert torch.allclose(classifier_free(denoise, denoise, 3.0)(x, 0.5, "here"), x)


@pytest.mark.parametrize("rescale", [-0.1, 1.1])
def test_bad_rescale_is_refused(rescale: float) -> None:
    with pytest.raises(ValueError, match="rescale"):
        classifier_free(conditional, unconditional, 2.0, rescale)
