"""Files of low-rank adapters: find them, and read them with peft's names."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.utils.other import get_pattern_key
from torch import Tensor

from ldm_video.core.errors import UserError

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
_DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
# Initialisations of peft that move part of the base weights into the adapter, which then fits no other weights.
_CHANGES_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")


def split_scale(name: str) -> tuple[Path, float]:
    """Split ``FOLDER_OR_FILE[:scale]`` into path and scale (default 1). Raises ``UserError`` unless it is finite."""
    path, colon, number = name.rpartition(":")
    try:
        scale = float(number) if colon else 1.0
    except ValueError:  # the colon is part of the path
        return Path(name), 1.0
    if not math.isfinite(scale):
        raise UserError(f"the scale of --lora {name} is not a finite number; 1 applies the adapter as trained")
    return Path(path or name), scale


def weights_file(path: Path) -> Path:
    """Return the weights file in an adapter's folder, or a file itself. Raises ``UserError`` if there are several."""
    if not path.is_dir():
        return path
    for name in (WEIGHTS, _DIFFUSERS_WEIGHTS):
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise UserError(f"{path} holds {len(files)} .safetensors files and no {WEIGHTS}; give one of them")
    return path / WEIGHTS  # reading it reports that it is missing or that there is a pickle instead


def read_diffusers(file: Path) -> tuple[dict[str, Tensor], dict[str, float], Mapping[str, Any]]:
    """Return the UNet's weights with peft's names, alphas by layer, and the settings in the header, if any.

    Raises ``UserError`` if diffusers cannot read the file, or it has more or other than plain LoRA weights of the UNet;
    those of the text encoder are dropped with a warning.
    """
    try:
        state, alphas, settings = StableDiffusionLoraLoaderMixin.lora_state_dict(
            str(file), use_safetensors=True, local_files_only=True, return_lora_metadata=True
        )
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{file} is no LoRA of a Stable Diffusion UNet that diffusers can read ({reason})") from error
    unet = {key.removeprefix("unet."): value for key, value in state.items() if not key.startswith("text_encoder")}
    if not unet:
        raise UserError(f"{file} is a LoRA of the text encoder alone, which is not read here; take one of the UNet")
    if left := len(state) - len(unet):
        log.warning("%s: %d weights of the text encoder are left out; the prompt is read as without them", file, left)
    # Alphas are named after the layer, or after the layer's first weight, with the older names.
    named = {key.removeprefix("unet.").removesuffix(".alpha"): value for key, value in (alphas or {}).items()}
    by_layer = {key.partition(".lora_A")[0]: value for key, value in convert_unet_state_dict_to_peft(named).items()}
    unet = convert_unet_state_dict_to_peft(unet)
    if other := [key for key in unet if ".lora_" not in key]:
        raise UserError(f"{file}: '{other[0]}' is no LoRA weight; only plain LoRA is read here")
    return unet, by_layer, {key.removeprefix("unet."): value for key, value in (settings or {}).items()}


def refuse_other_kinds(settings: Mapping[str, Any], file: Path) -> None:
    """Raise ``UserError`` for adapters other than two factors to be added to the published weights."""
    if settings.get("peft_type", "LORA") != "LORA" or settings.get("use_dora"):
        raise UserError(f"{file} is an adapter of another kind than plain LoRA, which alone is read here")
    start = str(settings.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        raise UserError(
            f"{file} is for weights that its start ({start}) has changed, which published ones are not; "
            "have peft save it as plain LoRA"
        )


def paired(state: Mapping[str, Tensor], file: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Group the factors by layer: ``(down, up)``; return them and the weights that are not factors.

    Raises ``UserError`` for an unknown LoRA weight and for a layer without two factors of one rank.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    full = {}
    for key, value in state.items():
        path, lora, rest = key.partition(".lora_")
        if not lora:
            full[key] = value
        elif rest in ("A.weight", "B.weight"):
            factors.setdefault(path, {})[rest[0]] = value
        else:
            raise UserError(f"{file}: '{key}' is not of a plain LoRA, which alone is read here")
    for path, pair in factors.items():
        whole = pair.keys() == {"A", "B"} and min(pair["A"].ndim, pair["B"].ndim) > 1
        if not whole or len(pair["A"]) != pair["B"].shape[1:].numel() or len(pair["A"]) == 0:
            raise UserError(f"{file}: '{path}' has not two factors of one rank; copy or download it again")
    return {path: (pair["A"], pair["B"]) for path, pair in factors.items()}, full


def factors(ranks: Mapping[str, int], alphas: Mapping[str, float], settings: Mapping[str, Any]) -> dict[str, float]:
    """Return by layer the multiplier of the product of its factors: alpha / rank, or 1 if no alpha is stored."""
    patterns, common = settings.get("alpha_pattern") or {}, settings.get("lora_alpha")
    factors = {}
    for path, rank in ranks.items():
        alpha = patterns.get(get_pattern_key(list(patterns), path), alphas.get(path, common))
        root = math.sqrt(rank) if settings.get("use_rslora") else rank  # arXiv:2312.03732
        factors[path] = 1.0 if alpha is None else float(alpha) / root
    return factors
