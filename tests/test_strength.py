"""How many steps a strength leaves: as many as diffusers' image to image."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import Tensor

from ldm_video.diffusion.sampler import make_scheduler, sample, steps_to_run


def calls(steps: int, strength: float, name: str = "DDIMScheduler") -> list[float]:
    """The timesteps at which :func:`sample` asks the denoiser."""
    seen, x = list[float](), torch.randn(1, 1, 4, 8, 8)

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        seen.append(float(timestep))
        return x

    sample(denoise, make_scheduler(name, steps_offset=1), x, steps, start=x, strength=strength)
    return seen


@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize(
    ("steps", "strength"), [(7, 0.5), (5, 0.5), (9, 0.5), (10, 0.65), (10, 0.75), (30, 0.35), (100, 0.29), (20, 1.0)]
)
def test_the_steps_are_those_of_diffusers(steps: int, strength: float, name: str) -> None:
    scheduler = make_scheduler(name, steps_offset=1)
    scheduler.set_timesteps(steps)
    pipeline = SimpleNamespace(scheduler=scheduler)
    theirs, count = StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, steps, strength, "cpu")
    assert calls(steps, strength, name) == theirs.tolist()
    assert steps_to_run(steps, strength) == count


def test_one_step_is_left_where_diffusers_takes_none() -> None:
    assert len(calls(4, 0.1)) == 1
