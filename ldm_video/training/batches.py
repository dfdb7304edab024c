"""From a batch of clip pairs to evidence, and the random numbers of a step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ldm_video.core.evidence import Evidence, build_evidence


def step_generator(seed: int, step: int, rank: int = 0, purpose: str = "train") -> torch.Generator:
    """The random numbers of one step: a pure function of its arguments, so that a resumed run draws the same."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def batch_evidence(batch: Mapping[str, Tensor], known_share: float, generator: torch.Generator) -> Evidence:
    """Evidence of a training batch.

    Args:
        batch: ``hr`` b t 3 H W and ``lr`` b t 3 h w in [-1, 1], ``hole`` b t 1 H W in {0, 1}.
        known_share: the share of clips whose high-res pixels are known outside the hole: inpainting of HD clips.
    """
    hr, hole = batch["hr"], batch["hole"]
    inpaint = torch.rand(hr.shape[0], 1, 1, 1, 1, generator=generator) < known_share  # b 1 1 1 1
    known = inpaint.to(hole) * (1 - hole)  # b t 1 H W
    return build_evidence(batch["lr"], hole, known_pixels=hr, known=known)
