"""Variants of a published pipeline's weights, such as ``fp16``, identified by file name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ldm_video.core.checkpoints import refuse_pickle
from ldm_video.core.errors import UserError

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Part -> stem of its weights files."""

PLAIN = ""
_SHARD = r"(?:-\d+-of-\d+)?"  # after the variant in diffusers, before it in transformers


def variants_of(part: str, names: Iterable[str]) -> set[str]:
    """Return the variants among a part's file names: sharded or not, safetensors only; ``PLAIN`` for plain weights."""
    pattern = re.compile(rf"{WEIGHTS[part]}{_SHARD}(?:\.(\w+))?{_SHARD}\.safetensors")
    return {found[1] or PLAIN for found in map(pattern.fullmatch, names) if found}


def stored_variants(folder: Path) -> set[str]:
    """Return the variants in a part's folder."""
    return variants_of(folder.name, (path.name for path in folder.glob("*.safetensors")))


def choose_variant(folder: Path, variant: str | None) -> str | None:
    """Return the variant of a part's weights to read: the given one, else None for plain weights, else the only one.

    Raises ``UserError`` if the folder has no weights, lacks the given variant, or has several and none is given.
    """
    stored = stored_variants(folder)
    if variant and variant in stored:
        return variant
    if not variant and (PLAIN in stored or len(stored) == 1):
        return None if PLAIN in stored else stored.pop()
    wanted = f"weights of the variant {variant}" if variant else "plain weights"
    if not stored:
        for path in sorted(folder.glob(f"{WEIGHTS[folder.name]}.*")):
            refuse_pickle(path)
        raise UserError(f"{folder} has no {wanted} in safetensors; the model is not whole, copy or download it again")
    others = ", ".join(name or "plain ones" for name in sorted(stored))
    advice = "leave the variant out, or give one that all parts have" if variant else "give one of these as the variant"
    raise UserError(f"{folder} has no {wanted}, only {others}; {advice}")


def weight_patterns(variants: Mapping[str, str]) -> list[str]:
    """Return glob patterns of weights files, given the variant of each part."""
    tails = {part: f".{variant}" if variant else "" for part, variant in variants.items()}
    return [
        f"{part}/{WEIGHTS[part]}{form}.safetensors"
        for part, tail in tails.items()
        for form in (tail, f"{tail}-*-of-*", f"-*-of-*{tail}" if tail else "-?????-of-?????")
    ]
