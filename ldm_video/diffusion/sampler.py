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
# LCM, TCD and their kin draw fresh noise for the whole tensor at each of very few steps, so a frame's result would
# depend on the clip's length: they stay out until that noise can be drawn frame by frame.
# PNDM's warm-up steps make it wrong from the middle of a schedule.
SCHEDULERS = tuple(sorted(DETERMINISTIC + STOCHASTIC))
# Their options stand in published configs, and are dropped when another solver takes over.
_ALSO_STORED = ("LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler")

Callback = Callable[[int, int, Tensor], None]
"""``callback(done, total, x)`` after each of ``total`` calls of the denoiser; ``x`` is the sample so far."""


def make_scheduler(name_or_config: str | Mapping[str, Any], **overrides: Any) -> SchedulerMixin:
    """A diffusers scheduler.

    Args:
        name_or_config: a class name of :data:`SCHEDULERS`, or a mapping in the diffusers layout, whose ``_class_name``
            names it, as read from ``scheduler_config.json`` or YAML.
        overrides: win over the mapping. ``_class_name`` swaps the solver of a stored config; keys that only the old
            class knows are then dropped.

    ``clip_sample`` is off where it is not given: latents have no bounds to clip to.

    Raises:
        UserError: unknown scheduler or key, or a combination that cannot work.
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
    """A stored config without the options that no scheduler has any more (``tensor_format`` of early diffusers).

    For configs that others published, which :func:`make_scheduler` would refuse as misspelt; what a user types is not.
    """
    return {key: value for key, value in stored.items() if key.startswith("_") or key in _options()}


def from_the_last(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The scheduler with steps that begin at the last trained timestep: ``trailing``, where it has a spacing.

    With ``leading``, as Stable Diffusion's checkpoints store it, the first of four steps is 751 of 999, where the clean
    sample should be seen and pure noise is given (arXiv:2305.08891, section 3.3). With many steps it hardly matters.
    """
    if "timestep_spacing" not in scheduler.config:
        return scheduler
    return type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")


def sampling_timesteps(scheduler: SchedulerMixin, steps: int) -> Tensor:
    """The timesteps that :func:`sample` visits, ``(steps,)`` from the noisiest down, on the CPU.

    Of the scheduler's own type, but for flows, whose are floating: UniPC and DPM-Solver round them to whole numbers,
    which a :class:`~ldm_video.diffusion.process.Process` would take for indices. It takes these as they are.
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
    """Draw a sample: from noise, or from ``start`` made noisy.

    Args:
        denoise: ``(x, timestep) -> output`` of the scheduler's prediction type; ``x`` is ``noise``'s shape and type.
        scheduler: read, copied, never changed.
        noise: unit-variance noise, ``b t c h w``.
        steps: number of steps.
        start: a clean estimate, ``b t c h w``: sampling begins at ``strength`` of the way, from ``start`` made noisy.
        strength: in (0, 1], the share of the steps to run; below 1 it needs ``start``.
        callback: see :data:`Callback`.

    Returns:
        The sample at the end of the schedule, ``b t c h w`` of ``noise``'s type.

    Raises:
        ValueError: a scheduler that adds noise at each step (:func:`draws_noise`), no steps, a bad strength.
    """
    if draws_noise(scheduler):
        name = type(scheduler).__name__
        raise ValueError(f"{name} adds noise at each step, which is not drawn frame by frame; use DDIM")
    scheduler = copy.deepcopy(scheduler)
    _set_timesteps(scheduler, steps, noise.device)
    if not 0.0 < strength <= 1.0 or (strength < 1.0 and start is None):
        raise ValueError(f"strength must be in (0, 1], and 1 without a start, got {strength}")

    total_steps = scheduler.num_inference_steps or len(scheduler.timesteps)
    skipped = (total_steps - max(1, round(total_steps * strength))) * scheduler.order
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


def _begin(scheduler: SchedulerMixin, noise: Tensor, start: Tensor | None, timestep: Tensor) -> Tensor:
    # At least float32 between steps: a half-precision state would lose the small last steps.
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
        # Left to itself the flow scheduler ends at sigma 1 / N, where a whole step is spent on nothing; and it
        # shifts levels that are shifted already. Flux's and SD3's pipelines hand it these levels too.
        scheduler.set_timesteps(sigmas=[1.0 - i / steps for i in range(steps)], device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
        _drop_beyond_data(scheduler, steps)


def _drop_beyond_data(scheduler: SchedulerMixin, steps: int) -> None:
    """Leave out timesteps below 0, in place.

    Trailing spacing counts down by a step that is rounded: at some counts (61, 103, 121) it makes one timestep too
    many, -1, at which DDIM reads the last of its levels, pure noise, and the others stand still.
    """
    beyond = int((scheduler.timesteps < 0).sum())  # two-stage solvers repeat it
    if not beyond:
        return
    scheduler.timesteps = scheduler.timesteps[:-beyond]
    scheduler.num_inference_steps = steps
    if hasattr(scheduler, "sigmas"):  # one more than timesteps: where the last step leads
        scheduler.sigmas = torch.cat([scheduler.sigmas[: -beyond - 1], scheduler.sigmas[-1:]])


def draws_noise(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler adds noise at each step; such noise cannot be drawn frame by frame."""
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
    """Every option of a scheduler that is, or was, stored with a checkpoint."""
    return frozenset().union(*map(_parameters, SCHEDULERS + _ALSO_STORED))


@cache
def _parameters(name: str) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
