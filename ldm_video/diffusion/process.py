"""The forward process ``x_t = alpha_t x_0 + sigma_t n`` and everything that follows from it: its only home.

Two families, both read from a diffusers scheduler's config and never typed by hand:

- variance preserving (``alpha^2 + sigma^2 = 1``; DDPM, DDIM, DPM-Solver, Euler, Heun, ...), predicting the noise
  (*epsilon*, arXiv:2006.11239), the velocity (*v*, arXiv:2202.00512) or the clean *sample*;
- rectified flow (``alpha + sigma = 1``; FlowMatch*, arXiv:2209.03003), predicting the *flow*.

Noise levels are ordered from the cleanest (index 0) to the noisiest (index N - 1) in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

Prediction = Literal["epsilon", "v", "sample", "flow"]

_DIFFUSERS_PREDICTION: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "sample",
    "flow_prediction": "flow",
}


# What decides a process in the configs of both families, the first to be named first.
_OPTIONS = (
    "prediction_type",
    "num_train_timesteps",
    "rescale_betas_zero_snr",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "use_dynamic_shifting",
    "shift",
    "flow_shift",
)


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler is of the second family; UniPC and DPM-Solver may be of either.

    Raises ``ValueError`` for the prediction of one family on the levels of the other: where diffusers takes that, it
    samples neither.
    """
    if type(scheduler).__name__.startswith("FlowMatch"):
        return True
    flow = scheduler.config.get("prediction_type") == "flow_prediction"
    if flow != bool(scheduler.config.get("use_flow_sigmas")):
        raise ValueError("prediction_type flow_prediction and use_flow_sigmas go together, in solvers that have both")
    return flow


def check_process(scheduler: SchedulerMixin) -> None:
    """Raises ``ValueError`` for what :meth:`Process.from_scheduler` does not describe, as that itself does."""
    config = scheduler.config
    if is_flow(scheduler):
        if config.get("invert_sigmas"):
            raise ValueError("invert_sigmas (time running from data to noise) is not supported")
        return
    prediction = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or prediction not in _DIFFUSERS_PREDICTION:
        raise ValueError(
            f"{type(scheduler).__name__} with prediction_type {prediction!r} is neither a variance-preserving "
            f"process nor a flow; known prediction types: {', '.join(_DIFFUSERS_PREDICTION)}"
        )
    if config.get("timestep_type") == "continuous" and prediction == "v_prediction":  # Euler has such, for v alone
        raise ValueError("timestep_type continuous (the logarithm of the noise level) is not supported; use discrete")


@dataclass(frozen=True, eq=False)
class Process:
    """Noise levels and the quantity that a denoiser predicts.

    Attributes:
        alphas: ``(N,)`` float32, how much of the clean sample is left; falls with the index.
        sigmas: ``(N,)`` float32, standard deviation of the noise; rises with the index.
        timesteps: ``(N,)`` what the denoiser is told at each index: int64 0..N-1 for variance-preserving processes,
            float32 ``N * sigma`` for flows.
        prediction: what the denoiser outputs.

    A noise level ``t`` is given to every method in one of two ways, told apart by type:

    - **integer**: an index into the tables, as drawn in training;
    - **floating**: a timestep as schedulers hand it out, possibly between two entries. For flows the line between
      entries, and from the first entry down to the clean sample at 0, is the process itself, so this is exact.
      Otherwise ``alpha^2`` is interpolated linearly, which keeps the variance one. Values off the ends are clamped.

    ``t`` is a scalar or ``(b,)``, and broadcasts over the sample's other axes.
    """

    alphas: Tensor
    sigmas: Tensor
    timesteps: Tensor
    prediction: Prediction

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"unknown prediction {self.prediction!r}; choose one of {get_args(Prediction)}")
        if not self.alphas.shape == self.sigmas.shape == self.timesteps.shape == (len(self.alphas),):
            raise ValueError("alphas, sigmas and timesteps must be one-dimensional and of one length")

    @classmethod
    def from_scheduler(cls, scheduler: SchedulerMixin) -> Process:
        """The process that a diffusers scheduler's *config* describes, whatever steps the scheduler is set to.

        The same config gives the same process whichever solver carries it: Euler and DPM-Solver, for one, replace a
        zero terminal SNR with a small number for their own sake; the process does not.

        Raises:
            ValueError: the scheduler is of neither family (EDM, consistency and other variance-exploding schedulers),
                or partly of one and partly of the other (:func:`is_flow`); its time runs from data to noise, or its
                timesteps are logarithms of the noise level.
        """
        check_process(scheduler)
        config = scheduler.config
        if is_flow(scheduler):
            # With dynamic shifting the shift belongs to a sampling resolution, not to the training table.
            shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", config.get("flow_shift", 1.0))
            flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=config["num_train_timesteps"], shift=shift)
            return cls(1.0 - flow.sigmas.flip(0), flow.sigmas.flip(0), flow.timesteps.flip(0), "flow")
        alpha_bars = DDPMScheduler.from_config(config).alphas_cumprod
        timesteps = torch.arange(len(alpha_bars))
        prediction = _DIFFUSERS_PREDICTION[config.get("prediction_type", "epsilon")]
        return cls(alpha_bars.sqrt(), (1.0 - alpha_bars).sqrt(), timesteps, prediction)

    def __len__(self) -> int:
        """N, the number of noise levels."""
        return len(self.alphas)

    def to(self, device: torch.device | str) -> Process:
        """The same process with its tables on ``device``; any device works, this only saves small copies."""
        return Process(self.alphas.to(device), self.sigmas.to(device), self.timesteps.to(device), self.prediction)

    @cached_property
    def zero_terminal_snr(self) -> bool:
        """Whether the last noise level is pure noise (arXiv:2305.08891)."""
        return bool(self.alphas[-1] == 0)

    def timestep_of(self, index: Tensor) -> Tensor:
        """What the denoiser is told at table indices ``(b,) int -> (b,)``, on the device of ``index``."""
        return self.timesteps.to(index.device)[index]

    def coefficients(self, t: Tensor | float, ndim: int = 1) -> tuple[Tensor, Tensor]:
        """``(alpha_t, sigma_t)`` in float32, each ``(b, 1, ...)`` with ``ndim`` axes (``b = 1`` for a scalar ``t``)."""
        t = torch.as_tensor(t).reshape(-1)
        alphas, sigmas = self.alphas.to(t.device), self.sigmas.to(t.device)
        alpha, sigma = self._interpolate(t, alphas, sigmas) if t.is_floating_point() else (alphas[t], sigmas[t])
        shape = (-1,) + (1,) * (ndim - 1)
        return alpha.reshape(shape), sigma.reshape(shape)

    def snr(self, t: Tensor | float) -> Tensor:
        """``SNR_t = alpha_t^2 / sigma_t^2``, ``(b,)``; 0 at a zero terminal SNR, infinite where there is no noise."""
        alpha, sigma = self.coefficients(t)
        return (alpha / sigma).square()

    def noisy(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """``x_t = alpha_t x_0 + sigma_t n``, in the type of ``x0``."""
        alpha, sigma = self._like(x0, t)
        return (alpha * x0 + sigma * noise).to(x0.dtype)

    def moved(self, xt: Tensor, x0: Tensor, t: Tensor | float, to: Tensor | float) -> Tensor:
        """Where a deterministic sampler that stands at ``x_t`` goes: to level ``to`` with the clean sample ``x0``.

        ``alpha_to x_0 + sigma_to (x_t - alpha_t x_0) / sigma_t``: DDIM's step (arXiv:2010.02502, eq. 12 without new
        noise) and, for flows, Euler's. In the type of ``xt``.
        """
        alpha, sigma = self._like(xt, t)
        return self.noisy(x0, (xt - alpha * x0) / sigma, to).to(xt.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """What a perfect denoiser outputs, in the type of ``x0``.

        epsilon: ``n``; v: ``alpha_t n - sigma_t x_0``; sample: ``x_0``; flow: ``n - x_0``.
        """
        match self.prediction:
            case "epsilon":
                return noise
            case "sample":
                return x0
            case "flow":
                return noise - x0
            case _:
                alpha, sigma = self._like(x0, t)
                return (alpha * noise - sigma * x0).to(x0.dtype)

    def to_x0(self, xt: Tensor, output: Tensor, t: Tensor | float) -> Tensor:
        """The clean sample that ``output`` claims, in the type of ``xt``.

        epsilon: ``(x_t - sigma_t o) / alpha_t``; v: ``alpha_t x_t - sigma_t o``; sample: ``o``; flow:
        ``x_t - sigma_t o``.

        Raises:
            ValueError: epsilon at a zero terminal SNR, where the noise says nothing about the clean sample.
        """
        alpha, sigma = self._like(xt, t)
        match self.prediction:
            case "sample":
                return output
            case "flow":
                return (xt - sigma * output).to(xt.dtype)
            case "v":
                return (alpha * xt - sigma * output).to(xt.dtype)
            case _:
                # The table is asked first: looking into ``alpha`` would wait for the GPU at every step.
                if self.zero_terminal_snr and bool((alpha == 0).any()):
                    raise ValueError("at zero terminal SNR noise does not determine the sample: predict v or sample")
                return ((xt - sigma * output) / alpha).to(xt.dtype)

    def _like(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.coefficients(t, x.ndim)
        return alpha.to(x.device), sigma.to(x.device)

    def _interpolate(self, t: Tensor, alphas: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        knots, power = self.timesteps.to(t.device, torch.float32), 2.0
        if self.prediction == "flow":
            power = 1.0
            knots, sigmas = torch.nn.functional.pad(knots, (1, 0)), torch.nn.functional.pad(sigmas, (1, 0))
            alphas = torch.nn.functional.pad(alphas, (1, 0), value=1.0)
        t = t.to(torch.float32).clamp(knots[0], knots[-1])
        right = torch.searchsorted(knots, t).clamp(1, len(knots) - 1)
        part = (t - knots[right - 1]) / (knots[right] - knots[right - 1])

        def between(table: Tensor) -> Tensor:
            table = table**power
            return torch.lerp(table[right - 1], table[right], part) ** (1.0 / power)

        return between(alphas), between(sigmas)


def unlike_option(one: SchedulerMixin, other: SchedulerMixin) -> str | None:
    """The first option in which two schedulers of different processes differ; None where the process is the same.

    Solver, spacing and offset of the steps are not of the process. Raises ``ValueError`` as
    :meth:`Process.from_scheduler` does.
    """
    first, second = Process.from_scheduler(one), Process.from_scheduler(other)
    if first.prediction == second.prediction and all(
        torch.equal(getattr(first, table), getattr(second, table)) for table in ("alphas", "sigmas", "timesteps")
    ):
        return None
    unlike = (key for key in _OPTIONS if one.config.get(key) != other.config.get(key))
    return next(unlike, "_class_name")
