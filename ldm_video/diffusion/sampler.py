"""The sampling loop over a diffusers scheduler, and the choice of schedulers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.diffusion.guidance import Denoise
from ldm_video.diffusion.process import check_process, is_flow

DETERMINISTIC = (
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
)
STOCHASTIC = ("DDPMScheduler", "EulerAncestralDiscreteScheduler")
# LCM, TCD and similar schedulers draw new noise for the whole tensor at each of very few steps, so a frame's result
# would depend on the clip's length: they are excluded until that noise can be drawn frame by frame.
# PNDM is excluded because its warm-up steps are wrong when starting from the middle of a schedule.
SCHEDULERS = tuple(sorted(DETERMINISTIC + STOCHASTIC))
# Found in published configs; their options are dropped when another solver is used instead.
_ALSO_STORED = ("LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler")

Callback = Callable[[int, int, Tensor], None]
"""``callback(done, total, x)`` after each of ``total`` denoiser calls; ``x`` is the current sample."""


def make_scheduler(name_or_config: str | Mapping[str, Any], **overrides: Any) -> SchedulerMixin:
    """Build a diffusers scheduler.

    Args:
        name_or_config: a class name from :data:`SCHEDULERS`, or a config in the diffusers format (as read from
            ``scheduler_config.json`` or YAML), whose ``_class_name`` gives the class.
        overrides: take precedence over the config. ``_class_name`` replaces the solver of a stored config; keys that
            only the old class has are then dropped.

    ``clip_sample`` defaults to False: latents have no bounds to clip to.

    Raises:
        UserError: an unknown scheduler or key, or an unsupported combination.
    """
    stored = {"_class_name": name_or_config} if isinstance(name_or_config, str) else name_or_config
    config: dict[str, Any] = {**stored, **overrides}
    name = config.pop("_class_name", None)
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    if name not in SCHEDULERS:
        raise UserError(f"unknown scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    if unknown := sorted(config.keys() - _options()):
        raise UserError(f"unknown scheduler option {unknown[0]!r} for {name}; remove it or correct its spelling")
    config = {key: value for key, value in config.items() if key in _parameters(name)}
    if "clip_sample" in _parameters(name):
        config.setdefault("clip_sample", False)
    try:
        scheduler = getattr(diffusers, name)(**config)
        check_process(scheduler)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise UserError(f"{name} refuses its options: {error}") from error
    _check_terminal_snr(scheduler)
    return scheduler


def known_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config without the options that no scheduler has any more (``tensor_format`` of early diffusers).

    Only for published configs; :func:`make_scheduler` rejects unknown options that users give, as misspelt.
    """
    return {key: value for key, value in stored.items() if key.startswith("_") or key in _options()}


def from_the_last(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Return the scheduler with steps that start at the last trained timestep: ``trailing``, if it has a spacing.

    With ``leading``, as Stable Diffusion checkpoints store it, four steps start at timestep 751 of 999, where the
    denoiser expects to see some of the clean sample but gets pure noise (arXiv:2305.08891, section 3.3). With many
    steps it hardly matters.
    """
    if "timestep_spacing" not in scheduler.config:
        return scheduler
    return type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")


def sampling_timesteps(scheduler: SchedulerMixin, steps: int) -> Tensor:
    """Return the timesteps that :func:`sample` visits, ``(steps,)`` from the noisiest down, on the CPU.

    In the scheduler's dtype, except for flows, which get floats: UniPC and DPM-Solver round theirs to integers, which a
    :class:`~ldm_video.diffusion.process.Process` would take for indices. The result can be passed to it as is.
    """
    scheduler = copy.deepcopy(scheduler)
    _set_timesteps(scheduler, steps, torch.device("cpu"))
    timesteps = torch.unique_consecutive(scheduler.timesteps)  # two-stage solvers repeat each timestep
    return timesteps.float() if is_flow(scheduler) else timesteps


@torch.no_grad()
def sample(
    denoise: Denoise,
    scheduler: SchedulerMixin,
    noise: Tensor,
    steps: int,
    *,
    start: Tensor | None = None,
    strength: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Sample from pure noise, or from a noisy ``start``.

    Args:
        denoise: ``(x, timestep) -> output`` of the scheduler's prediction type; ``x`` has the shape and dtype of
            ``noise``.
        scheduler: copied, never modified.
        noise: unit-variance noise, ``b t c h w``.
        steps: number of steps.
        start: a clean estimate, ``b t c h w``; noise is added to it and only the last ``strength`` of the steps run.
        strength: in (0, 1], fraction of the steps to run (:func:`steps_to_run`); below 1 it requires ``start``.
        callback: see :data:`Callback`.

    Returns:
        The sample at the end of the schedule, ``b t c h w`` in the dtype of ``noise``.

    Raises:
        ValueError: a scheduler that adds noise at each step (:func:`draws_noise`) or uses dynamic shifting, ``steps <
            1``, or an invalid ``strength``.
    """
    if draws_noise(scheduler):
        name = type(scheduler).__name__
        raise ValueError(f"{name} adds noise at each step, which is not drawn frame by frame; use DDIM")
    scheduler = copy.deepcopy(scheduler)
    _set_timesteps(scheduler, steps, noise.device)
    if not 0.0 < strength <= 1.0 or (strength < 1.0 and start is None):
        raise ValueError(f"strength must be in (0, 1], and 1 without a start, got {strength}")

    total_steps = scheduler.num_inference_steps or len(scheduler.timesteps)
    skipped = (total_steps - steps_to_run(total_steps, strength)) * scheduler.order
    timesteps = scheduler.timesteps[skipped:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    x = _begin(scheduler, noise, start, timesteps[:1])
    for done, timestep in enumerate(timesteps, start=1):
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        output = denoise(scaled.to(noise.dtype), timestep)
        x = scheduler.step(output.to(x.dtype), timestep, x, return_dict=False)[0]
        if callback is not None:
            callback(done, len(timesteps), x)
    return x.to(noise.dtype)


def steps_to_run(steps: int, strength: float) -> int:
    """Number of steps to run at a strength in (0, 1]: rounded down as in diffusers' img2img, at least one."""
    return max(1, int(steps * strength))


def _begin(scheduler: SchedulerMixin, noise: Tensor, start: Tensor | None, timestep: Tensor) -> Tensor:
    # Keep at least float32 between steps: half precision would lose the small last steps.
    noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
    if start is None:
        return noise * getattr(scheduler, "init_noise_sigma", 1.0)
    start, timestep = start.to(noise), timestep.expand(len(noise))
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(start, timestep, noise)
    return scheduler.add_noise(start, noise, timestep)


def _set_timesteps(scheduler: SchedulerMixin, steps: int, device: torch.device) -> None:
    if scheduler.config.get("use_dynamic_shifting"):
        raise ValueError("use_dynamic_shifting is not supported: give the scheduler a fixed shift")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if hasattr(scheduler, "set_shift") and "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        # By default the flow scheduler ends at sigma 1 / N, which wastes the last step, and applies its shift twice.
        # The pipelines of Flux and SD3 pass these sigmas as well.
        scheduler.set_timesteps(sigmas=[1.0 - i / steps for i in range(steps)], device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
        _drop_negative_timesteps(scheduler, steps)


def _drop_negative_timesteps(scheduler: SchedulerMixin, steps: int) -> None:
    """Remove timesteps below 0, in place.

    Trailing spacing counts down by a rounded step: some step counts (61, 103, 121) give one extra timestep, -1. There
    DDIM would read its last noise level, pure noise, and the other schedulers would not move.
    """
    negative = int((scheduler.timesteps < 0).sum())  # two-stage solvers have it twice
    if not negative:
        return
    scheduler.timesteps = scheduler.timesteps[:-negative]
    scheduler.num_inference_steps = steps
    if hasattr(scheduler, "sigmas"):  # one more than timesteps: the end of the last step
        scheduler.sigmas = torch.cat([scheduler.sigmas[: -negative - 1], scheduler.sigmas[-1:]])


def draws_noise(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler adds noise at each step; that noise cannot be drawn frame by frame."""
    config = scheduler.config
    return (
        type(scheduler).__name__ not in DETERMINISTIC
        or str(config.get("algorithm_type", "")).startswith("sde")
        or bool(config.get("stochastic_sampling"))
    )


def _check_terminal_snr(scheduler: SchedulerMixin) -> None:
    config = scheduler.config
    if not config.get("rescale_betas_zero_snr"):
        return
    if config.get("prediction_type") == "epsilon":
        raise UserError("rescale_betas_zero_snr needs prediction_type v_prediction: epsilon is blind at pure noise")
    if config.get("timestep_spacing") == "leading":
        raise UserError("rescale_betas_zero_snr needs timestep_spacing trailing: leading skips the last timestep")


@cache
def _options() -> frozenset[str]:
    """Every option of the schedulers that checkpoints are, or were, stored with."""
    return frozenset().union(*map(_parameters, SCHEDULERS + _ALSO_STORED))


@cache
def _parameters(name: str) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
