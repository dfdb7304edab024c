"""From a batch of clip pairs to evidence, the random numbers of a step, and a batch as a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm_video.core.evidence import Evidence, build_evidence
from ldm_video.core.files import atomic_path
from ldm_video.video_io.colour_shift import shift_colour


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch, a pure function of :func:`make_draws`' arguments: a resumed run draws the same.

    Attributes:
        step: what is drawn once for a step; the same in all processes.
        clips: one generator for each clip. It follows from the clip's number in the run, neither from the process that
            has the clip nor from its place there: several processes train as one with their joint batch.
    """

    step: torch.Generator
    clips: tuple[torch.Generator, ...]

    def each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """``draw``, which returns ``1 ...``, for each clip -> ``b ...``."""
        return torch.cat([draw(generator) for generator in self.clips])

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), ``b *shape``."""
        return self.each(lambda generator: torch.rand(1, *shape, generator=generator))

    def randn(self, *shape: int) -> Tensor:
        """Gaussian, ``b *shape``."""
        return self.each(lambda generator: torch.randn(1, *shape, generator=generator))


def make_draws(seed: int, step: int, clips: Iterable[int], purpose: str = "train") -> Draws:
    """The random numbers of the ``step``-th batch, which has the clips of these numbers."""
    numbers = tuple(_generator(f"{seed}/{purpose}/clip {number}") for number in clips)
    return Draws(_generator(f"{seed}/{purpose}/step {step}"), numbers)


def _generator(name: str) -> torch.Generator:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def batch_evidence(
    batch: Mapping[str, Tensor], known_share: float, draws: Draws, lead_share: float = 0.0, colour_shift: float = 0.0
) -> Evidence:
    """Evidence of a training batch.

    Args:
        batch: ``hr`` b t 3 H W and ``lr`` b t 3 h w in [-1, 1], ``hole`` b t 1 H W in {0, 1}.
        known_share: the share of clips whose high-res pixels are known outside the hole: inpainting of HD clips.
        lead_share: the share of clips whose first frames, up to half of them, are known whole: a film's segment that
            goes on from the one before. A single frame goes on from none. Nothing is drawn at 0.
        colour_shift: of the codec, see :class:`~ldm_video.models.codec.Codec`.
    """
    hr, hole = batch["hr"], batch["hole"]
    inpaint = draws.rand(1, 1, 1, 1) < known_share  # b 1 1 1 1
    known = inpaint.to(hole) * (1 - hole)  # b t 1 H W
    if lead_share:
        led, count = draws.rand(2).unbind(dim=1)  # b, b
        half = hr.shape[1] // 2
        count = ((count * half).floor() + 1).clamp(max=half)  # 1 to t // 2; of one frame none
        leads = torch.arange(hr.shape[1]) < (count * (led < lead_share))[:, None]  # b t
        known = torch.maximum(known, leads[:, :, None, None, None].to(known))
    return build_evidence(shift_colour(batch["lr"], colour_shift), hole, known_pixels=hr, known=known)


def save_batch(batch: Mapping[str, Any], path: str | Path) -> None:
    """Write a batch as safetensors, whole or not at all; what is no tensor (names, captions) goes into the header."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in batch.items() if isinstance(value, Tensor)}
    notes = {key: json.dumps(value, default=str) for key, value in batch.items() if not isinstance(value, Tensor)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=notes)
