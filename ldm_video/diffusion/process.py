"""The forward process ``x_t = alpha_t x_0 + sigma_t n`` and everything derived from it, defined only here.

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


# Config keys that determine a process of either family, in the order in which differences are reported.
_PROCESS_KEYS = (
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
    """Return whether a scheduler is a rectified flow; UniPC and DPM-Solver may be of either family.

    Raises ``ValueError`` if one family's prediction is combined with the other's noise levels: diffusers accepts some
    such configs, but then samples neither process.
    """
    if type(scheduler).__name__.startswith("FlowMatch"):
        return True
    flow = scheduler.config.get("prediction_type") == "flow_prediction"
    if flow != bool(scheduler.config.get("use_flow_sigmas")):
        raise ValueError("prediction_type flow_prediction and use_flow_sigmas go together, in solvers that have both")
    return flow


def check_process(scheduler: SchedulerMixin) -> None:
    """Raise ``ValueError`` for schedulers that :meth:`Process.from_scheduler` does not support."""
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
    if config.get("timestep_type") == "continuous" and prediction == "v_prediction":  # Euler has these, only for v
        raise ValueError("timestep_type continuous (the logarithm of the noise level) is not supported; use discrete")


@dataclass(frozen=True, eq=False)
class Process:
    """Noise levels and the quantity that a denoiser predicts.

    Attributes:
        alphas: ``(N,)`` float32, scale of the clean sample; decreases with the index.
        sigmas: ``(N,)`` float32, standard deviation of the noise; increases with the index.
        timesteps: ``(N,)`` what the denoiser is conditioned on at each index: int64 0..N-1 for variance-preserving
            processes, float32 ``N * sigma`` for flows.
        prediction: what the denoiser outputs.

    Every method takes a noise level ``t`` in one of two forms, distinguished by dtype:

    - **integer**: an index into the tables, as drawn in training;
    - **floating**: a timestep as given by schedulers, possibly between two entries. Flows are linear between entries,
      and from the first entry down to the clean sample at 0, so interpolation is exact. Otherwise ``alpha^2`` is
      interpolated linearly, which keeps the variance at 1. Values beyond the ends are clamped.

    ``t`` is a scalar or ``(b,)``, and broadcasts over the sample's other axes.

    Raises:
        ValueError: an unknown prediction, or tables that are not one-dimensional and of equal length.
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
        """Build the process that a diffusers scheduler's *config* describes, whatever steps the scheduler is set to.

        Equal configs give equal processes whichever solver uses them. Euler and DPM-Solver, for example, internally
        replace a zero terminal SNR with a small number; the process does not.

        Raises:
            ValueError: the scheduler belongs to neither family (EDM, consistency and other variance-exploding
                schedulers), or mixes both (:func:`is_flow`); or its time runs from data to noise, or its timesteps are
                logarithms of the noise level.
        """
        check_process(scheduler)
        config = scheduler.config
        if is_flow(scheduler):
            # With dynamic shifting the shift depends on the sampling resolution; the training table has none.
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
        """Move the tables to ``device``. Any device works; this only saves small copies."""
        return Process(self.alphas.to(device), self.sigmas.to(device), self.timesteps.to(device), self.prediction)

    @cached_property
    def zero_terminal_snr(self) -> bool:
        """Whether the last noise level is pure noise (arXiv:2305.08891)."""
        return bool(self.alphas[-1] == 0)

    def timestep_of(self, index: Tensor) -> Tensor:
        """Return the denoiser's timesteps for table indices, ``(b,) int -> (b,)``, on the device of ``index``."""
        return self.timesteps.to(index.device)[index]

    def coefficients(self, t: Tensor | float, ndim: int = 1) -> tuple[Tensor, Tensor]:
        """Return float32 ``(alpha_t, sigma_t)``, each ``(b, 1, ...)`` with ``ndim`` axes; scalar ``t``: ``b = 1``."""
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
        """Return ``x_t = alpha_t x_0 + sigma_t n``, in the dtype of ``x0``."""
        alpha, sigma = self._coefficients_like(x0, t)
        return (alpha * x0 + sigma * noise).to(x0.dtype)

    def moved(self, xt: Tensor, x0: Tensor, t: Tensor | float, to: Tensor | float) -> Tensor:
        """Take a deterministic sampler's step from ``x_t`` to noise level ``to``, given the clean sample ``x0``.

        ``alpha_to x_0 + sigma_to (x_t - alpha_t x_0) / sigma_t``: DDIM's step (arXiv:2010.02502, eq. 12 without added
        noise) and, for flows, Euler's. In the dtype of ``xt``.
        """
        alpha, sigma = self._coefficients_like(xt, t)
        return self.noisy(x0, (xt - alpha * x0) / sigma, to).to(xt.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """Return the output of a perfect denoiser, in the dtype of ``x0``.

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
                alpha, sigma = self._coefficients_like(x0, t)
                return (alpha * noise - sigma * x0).to(x0.dtype)

    def to_x0(self, xt: Tensor, output: Tensor, t: Tensor | float) -> Tensor:
        """Return the clean sample implied by ``output``, in the dtype of ``xt``.

        epsilon: ``(x_t - sigma_t o) / alpha_t``; v: ``alpha_t x_t - sigma_t o``; sample: ``o``; flow: ``x_t - sigma_t
        o``.

        Raises:
            ValueError: epsilon at a zero terminal SNR, where the noise does not determine the clean sample.
        """
        alpha, sigma = self._coefficients_like(xt, t)
        match self.prediction:
            case "sample":
                return output
            case "flow":
                return (xt - sigma * output).to(xt.dtype)
            case "v":
                return (alpha * xt - sigma * output).to(xt.dtype)
            case _:
                # Check the table first: reading ``alpha`` would synchronise with the GPU at every step.
                if self.zero_terminal_snr and bool((alpha == 0).any()):
                    raise ValueError("at zero terminal SNR noise does not determine the sample: predict v or sample")
                return ((xt - sigma * output) / alpha).to(xt.dtype)

    def _coefficients_like(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
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
    """Return the first option in which two schedulers' processes differ; None if the processes are equal.

    Solver, step spacing and offset are not part of the process. Raises ``ValueError`` as :meth:`Process.from_scheduler`
    does.
    """
    first, second = Process.from_scheduler(one), Process.from_scheduler(other)
    if first.prediction == second.prediction and all(
        torch.equal(getattr(first, table), getattr(second, table)) for table in ("alphas", "sigmas", "timesteps")
    ):
        return None
    differing = (key for key in _PROCESS_KEYS if one.config.get(key) != other.config.get(key))
    return next(differing, "_class_name")
