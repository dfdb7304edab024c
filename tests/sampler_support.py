"""Gaussian data, of which the best denoiser and the flow map are known, and the error of a sampler on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ldm_video.diffusion.process import Process
from ldm_video.diffusion.sampler import make_scheduler, sample

MEAN, STD = 0.3, 0.5
SHAPE = (2, 3, 4, 5, 6)  # b t c h w
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "trailing"}


def make(name: str, **options: Any) -> SchedulerMixin:
    """A scheduler on Stable Diffusion's betas (a flow has none)."""
    return make_scheduler(name, **(options if name.startswith("FlowMatch") else BETAS | options))


def oracle(scheduler: SchedulerMixin) -> Callable[[Tensor, Tensor], Tensor]:
    """The best denoiser of Gaussian data, ``E[target | x_t]``, in float64."""
    process = Process.from_scheduler(scheduler)

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = (value.double() for value in process.coefficients(timestep.float(), x.ndim))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = MEAN + gain * (x.double() - alpha * MEAN)
        noise = sigma / (alpha**2 * STD**2 + sigma**2) * (x.double() - alpha * MEAN)
        return {
            "epsilon": noise,
            "v": alpha * noise - sigma * x0,
            "sample": x0,
            "flow": noise - x0,
        }[process.prediction].to(x.dtype)

    return denoise


def flow_map(scheduler: SchedulerMixin, noise: Tensor, last: float = 0.0) -> Tensor:
    """Where the exact ODE carries ``noise``, with the closed-form denoiser's estimate at the last noise level.

    Along the ODE ``(x_t - alpha_t m) / sqrt(alpha_t^2 s^2 + sigma_t^2)`` is constant.

    Args:
        scheduler: of the process. Solvers that work on ``x / alpha`` begin at ``sigma / alpha`` times the noise, the
            others at the noise itself.
        noise: unit variance.
        last: the schedule's last ``sigma`` (flow) or ``sigma / alpha`` (else) above zero. From there every solver
            jumps to the denoiser's estimate; where the level stays the same as steps are added, that jump is no error
            of the solver's.
    """
    process = Process.from_scheduler(scheduler)
    alpha, sigma = process.alphas[-1].double(), process.sigmas[-1].double()
    scaled = getattr(scheduler, "init_noise_sigma", 1.0) != 1.0
    start = sigma * noise.double() if scaled else noise.double()
    constant = (start - alpha * MEAN) / torch.sqrt(alpha**2 * STD**2 + sigma**2)
    keep = 1.0 - last if process.prediction == "flow" else (1.0 + last**2) ** -0.5
    left = last if process.prediction == "flow" else last * keep
    return MEAN + keep * STD**2 / np.hypot(keep * STD, left) * constant


def errors(scheduler: SchedulerMixin, counts: Sequence[int], last: float = 0.0) -> list[float]:
    """Mean distance to the closed form at each number of steps."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    exact = flow_map(scheduler, noise, last)
    return [(sample(oracle(scheduler), scheduler, noise, count) - exact).abs().mean().item() for count in counts]
