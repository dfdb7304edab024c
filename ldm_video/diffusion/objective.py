"""The training objective: squared error of the prediction, its weight, and the sampling of noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import reduce
from torch import Tensor

from ldm_video.diffusion.process import Process

Weighting = Literal["uniform", "min_snr"]
Draw = Literal["uniform", "logit_normal"]


@dataclass(frozen=True, eq=False)
class Objective:
    """Loss between a denoiser's output and the target of the process.

    Attributes:
        process: forward process and prediction type.
        weighting: ``uniform``, or ``min_snr`` (Hang et al., arXiv:2303.09556).
        gamma: the signal-to-noise ratio at which min-SNR clips.
        floor: smallest min-SNR weight where there is more noise than signal (SNR < 1). As the SNR approaches 0 the
            weights of v, sample and flow vanish, so at zero terminal SNR the first sampling step would not be trained
            at all: a floor of 0 is refused there. The default is about an eighth of the largest v weight, ``gamma /
            (gamma + 1)``. At the clean end, where v and flow weights vanish as well, the weight is the paper's.
        draw: distribution of training noise levels: ``uniform`` over the table, or ``logit_normal`` for flows (SD3,
            arXiv:2403.03206; before the table's shift).
        logit_mean, logit_std: of ``logit_normal``; a positive mean favours noisier levels.

    Raises:
        ValueError: an unknown or unsupported combination of options, or a value out of range.
    """

    process: Process
    weighting: Weighting = "uniform"
    gamma: float = 5.0
    floor: float = 0.1
    draw: Draw = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        flow = self.process.prediction == "flow"
        if self.weighting not in get_args(Weighting):
            raise ValueError(f"unknown weighting {self.weighting!r}; choose one of {get_args(Weighting)}")
        if self.draw not in get_args(Draw):
            raise ValueError(f"unknown draw {self.draw!r}; choose one of {get_args(Draw)}")
        if not flow and self.draw == "logit_normal":
            raise ValueError("logit_normal is defined for flows; other processes draw uniformly")
        if self.gamma <= 0 or self.floor < 0 or self.logit_std <= 0:
            raise ValueError("gamma and logit_std must be positive, floor must not be negative")
        vanishing = self.weighting == "min_snr" and self.floor == 0 and self.process.prediction != "epsilon"
        if vanishing and self.process.zero_terminal_snr:
            raise ValueError("min_snr with floor 0 never trains the first sampling step at zero terminal SNR; give 0.1")

    def loss(self, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared error per sample and its weight.

        Args:
            prediction: the denoiser's output at ``x_t``, ``b ...``.
            x0: clean samples, ``b ...``.
            noise: the unit-variance noise in ``x_t``, ``b ...``.
            t: table indices ``(b,)``.

        Returns:
            ``(b,)`` mean squared error, unweighted, and ``(b,)`` weight, both float32; train on ``(loss *
                weight).mean()``.
        """
        target = self.process.target(x0.float(), noise.float(), t)
        error = (prediction.float() - target).square()
        return reduce(error, "b ... -> b", "mean"), self.weight(t).to(error.device)

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight ``(b,)`` of the squared error at noise levels ``t`` ``(b,)``.

        ``min_snr`` weights the squared error of the implied clean sample by ``min(SNR, gamma)``. With ``m = min(SNR,
        gamma)``: sample ``m``; v ``m / (SNR + 1)``; flow ``m sigma^2`` (for both, an output error of 1 is a sample
        error of ``sigma``); epsilon ``m / SNR``; never below ``floor`` for SNR < 1.

        At zero SNR the epsilon weight is its limit, 1, instead of 0 / 0. The denoiser learns nothing there (the noise
        is its input), which is why the sampler refuses epsilon with zero terminal SNR.
        """
        snr = self.process.snr(t)
        if self.weighting == "uniform":
            return torch.ones_like(snr)
        clipped = snr.clamp(max=self.gamma)
        match self.process.prediction:
            case "epsilon":
                weight = self.gamma / snr.clamp(min=self.gamma)
            case "v":
                weight = clipped / (snr + 1.0)
            case "flow":
                weight = clipped * self.process.coefficients(t)[1].square()
            case _:
                weight = clipped
        return torch.where(snr < 1.0, weight.clamp(min=self.floor), weight)

    def sample_timesteps(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw table indices, ``(batch,)`` int64 in 0..N-1, on the generator's device."""
        count, device = len(self.process), generator.device
        if self.draw == "uniform":
            return torch.randint(count, (batch,), generator=generator, device=device)
        normal = torch.randn(batch, generator=generator, device=device)
        level = torch.sigmoid(self.logit_mean + self.logit_std * normal)
        return (level * count).long().clamp(max=count - 1)
