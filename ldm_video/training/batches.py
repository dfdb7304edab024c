"""Building evidence from a batch of clip pairs, drawing the random numbers of a step, saving a batch to a file."""

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
    """The random generators of one batch, a pure function of :func:`make_draws`' arguments, so runs can be resumed.

    Attributes:
        step: generator for what is drawn once per step; the same in all processes.
        clips: one generator per clip. It depends on the clip's number in the run, not on its process or position in the
            batch, so several processes train exactly like one process with their joint batch.
    """

    step: torch.Generator
    clips: tuple[torch.Generator, ...]

    def each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Call ``draw``, which returns ``1 ...``, for each clip and concatenate: ``b ...``."""
        return torch.cat([draw(generator) for generator in self.clips])

    def rand(self, *shape: int) -> Tensor:
        """Draw uniform numbers in [0, 1), ``b *shape``."""
        return self.each(lambda generator: torch.rand(1, *shape, generator=generator))

    def randn(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, ``b *shape``."""
        return self.each(lambda generator: torch.randn(1, *shape, generator=generator))


def make_draws(seed: int, step: int, clips: Iterable[int], purpose: str = "train") -> Draws:
    """Return the generators of the ``step``-th batch, which holds the clips with these numbers."""
    numbers = tuple(_generator(f"{seed}/{purpose}/clip {number}") for number in clips)
    return Draws(_generator(f"{seed}/{purpose}/step {step}"), numbers)


def _generator(name: str) -> torch.Generator:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def batch_evidence(
    batch: Mapping[str, Tensor], known_share: float, draws: Draws, lead_share: float = 0.0, colour_shift: float = 0.0
) -> Evidence:
    """Build the evidence of a training batch.

    Args:
        batch: ``hr`` b t 3 H W and ``lr`` b t 3 h w in [-1, 1], ``hole`` b t 1 H W in {0, 1}.
        known_share: fraction of clips whose high-res pixels are known outside the hole: inpainting of HD clips.
        lead_share: fraction of clips whose first frames, from one up to half of them, are fully known, as when a
            segment of a film continues the previous one. No effect on single frames. At 0, nothing is drawn.
        colour_shift: that of the codec, see :class:`~ldm_video.models.codec.Codec`.
    """
    hr, hole = batch["hr"], batch["hole"]
    inpaint = draws.rand(1, 1, 1, 1) < known_share  # b 1 1 1 1
    known = inpaint.to(hole) * (1 - hole)  # b t 1 H W
    if lead_share:
        led, count = draws.rand(2).unbind(dim=1)  # b, b
        half = hr.shape[1] // 2
        count = ((count * half).floor() + 1).clamp(max=half)  # 1 to t // 2; 0 for a single frame
        leads = torch.arange(hr.shape[1]) < (count * (led < lead_share))[:, None]  # b t
        known = torch.maximum(known, leads[:, :, None, None, None].to(known))
    return build_evidence(shift_colour(batch["lr"], colour_shift), hole, known_pixels=hr, known=known)


def save_batch(batch: Mapping[str, Any], path: str | Path) -> None:
    """Write a batch atomically as safetensors; non-tensors (names, captions) go into the header as JSON."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in batch.items() if isinstance(value, Tensor)}
    notes = {key: json.dumps(value, default=str) for key, value in batch.items() if not isinstance(value, Tensor)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=notes)
