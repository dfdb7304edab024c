"""Low-rank adapters (LoRA, arXiv:2106.09685) on the denoiser's attention: train few weights, keep a small file.

A layer with weight ``W`` gets two factors, ``down`` (rank x in) and ``up`` (out x rank), and computes
``W + alpha / rank * up @ down``. Training injects them with peft and leaves ``W`` still; loading adds the product to
``W`` once, so that sampling costs what it did.

The file is peft's: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, whose names are those of
the diffusers UNet (``base_model.model.down_blocks.1.attentions.0...to_q.lora_A.weight``), without our wrappers.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm_video.core.checkpoints import read_weights
from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path
from ldm_video.models.export import is_new, temporal_blocks
from ldm_video.models.inflate import VideoUNet
from ldm_video.models.open_model import FRAME_BY_FRAME, open_model
from ldm_video.models.stable_diffusion import read_json
from ldm_video.models.temporal import TemporalConfig
from ldm_video.models.video_model import VideoModel

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
_DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
_PREFIX = "base_model.model."  # peft's, before the name of every weight
_NAME = "default"  # of the adapter in the running model
_LAYERS = ["to_k", "to_out.0", "to_q", "to_v"]
_ATTENTION = r".*\.to_(q|k|v|out\.0)"
_FULL = ("temporal", "conv_in")


@dataclass(frozen=True)
class LoRA:
    """What is trained of a model, in place of the model.

    Attributes:
        rank: of the adapters of the spatial attention (to_q, to_k, to_v, to_out.0); None for no adapters at all.
        alpha: the product of the factors counts ``alpha / rank``.
        temporal: also give the temporal attention adapters, in a model whose temporal layers are trained.
        full: what is trained, and kept in the file, whole: ``temporal`` layers, and ``conv_in``, which reads the
            evidence. Those that a published checkpoint does not have begin anew in each process: a file without
            them would be worth nothing.
    """

    rank: int | None = None
    alpha: int = 16
    temporal: bool = False
    full: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(f"rank is a whole number from 1 up, or null for no adapters, not {self.rank}")
        if not isinstance(self.alpha, int) or self.alpha < 1:  # as peft has it
            raise ValueError(f"alpha is a whole number from 1 up, not {self.alpha}")
        if unknown := [name for name in self.full if name not in _FULL]:
            raise ValueError(f"full takes {' and '.join(_FULL)}, not {unknown[0]!r}")
        if self.temporal and "temporal" in self.full:
            raise ValueError("temporal layers get adapters or are trained in full, not both")

    @property
    def layers(self) -> TemporalConfig | None:
        """The temporal layers that a published checkpoint is given: none where they would stay as they begin."""
        return None if "temporal" in self.full else FRAME_BY_FRAME


def add_adapters(denoiser: VideoUNet, lora: LoRA) -> None:
    """Inject adapters, of a rank, that leave the output as it is bit for bit; :func:`adapter_parameters` are theirs.

    Raises ``UserError`` where the denoiser has no such layers.
    """
    if lora.temporal and is_new(denoiser):
        raise UserError("the model has no trained temporal layers to adapt; lora.full=[temporal] trains new ones")
    if "temporal" in lora.full and not any(True for _ in denoiser.temporal_parameters()):
        raise UserError("the model has no temporal layers to train; leave them out of lora.full")
    assert lora.rank is not None
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        # Temporal blocks lie inside the UNet, and their layers have the same names.
        target_modules=_ATTENTION if lora.temporal else rf"(?!.*\.temporal\.){_ATTENTION}",
    )
    try:
        denoiser.unet.add_adapter(config, _NAME)
    except ValueError as error:  # what peft says names its pattern and no more
        which = "attention" if lora.temporal else "spatial attention"
        raise UserError(f"the model has no {which} to adapt; set lora.rank=null") from error
    # Known to peft before, it would have kept a second copy of these.
    config.modules_to_save = list(lora.full) or None


def adapter_parameters(denoiser: VideoUNet) -> list[nn.Parameter]:
    """What is trained of a denoiser with adapters; nothing for one without."""
    return list(_trained(denoiser.unet).values())


def save_adapter(denoiser: VideoUNet, folder: str | Path, base: str, dtype: torch.dtype | None = None) -> None:
    """Write the adapters of ``denoiser`` to ``folder``, whole or not at all, in peft's layout.

    Args:
        base: name of the model that they belong to.
        dtype: of the stored weights; None leaves them as they are.
    """
    running = denoiser.unet.peft_config[_NAME]
    config = LoraConfig(
        base_model_name_or_path=base,
        r=running.r,
        lora_alpha=running.lora_alpha,
        modules_to_save=running.modules_to_save,
        inference_mode=True,
    )
    config.target_modules = _LAYERS  # the constructor would make a set of it, whose order changes
    state = {_PREFIX + name: value.detach().to("cpu", dtype) for name, value in _trained(denoiser.unet).items()}
    # Diffusers does not read adapter_config.json: it looks into the header.
    facts = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": _LAYERS}
    header = json.dumps({_PREFIX + key: value for key, value in facts.items()})
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        config.save_pretrained(str(temporary))
        try:
            save_file(
                {name: value.contiguous() for name, value in state.items()},
                temporary / WEIGHTS,
                metadata={"format": "pt", "lora_adapter_metadata": header},
            )
        except SafetensorError as error:  # it wraps the operating system's error and drops its number
            raise UserError(f"cannot write {folder} ({error}); free some space or choose another folder") from error


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies on the disk.

    Attributes:
        where: the folder or file that decides what it does.
        scale: how much of it is wanted; 1 as it was trained, 0 nothing.
        pairs: down, up and their factor, by the diffusers UNet's name of the layer.
        full: weights in full, by name.
        base: the model that it was trained on, where that is told.
    """

    where: Path
    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor, float]]
    full: Mapping[str, Tensor]
    base: str | None

    @property
    def layers(self) -> TemporalConfig | None:
        """The temporal layers that a published checkpoint needs for this adapter."""
        return None if any(".temporal." in name for name in self.full) else FRAME_BY_FRAME


def read_adapter(name: str) -> Adapter:
    """Read ``FOLDER_OR_FILE[:scale]``: ours, another's of peft, or a Stable Diffusion LoRA of diffusers or kohya.

    Raises ``UserError`` for what is missing, damaged, a pickle, or another kind of adapter (DoRA, LoKr, LoHa).
    """
    path, scale = _split_scale(name)
    file = _weights_file(path)
    state = read_weights(file)
    where = file
    alphas: Mapping[str, float] = {}
    if state and all(key.startswith(_PREFIX) for key in state):
        where = file.parent  # two files
        settings: Mapping[str, Any] = read_json(file.with_name(CONFIG))
        state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    elif any("lora" in key for key in state) and not any("dora_scale" in key for key in state):
        state, alphas, settings = _read_diffusers(file)
    else:
        raise UserError(f"{file} holds no plain LoRA; give an adapter's folder or .safetensors file")
    if settings.get("peft_type", "LORA") != "LORA" or settings.get("use_dora"):
        raise UserError(f"{file} is an adapter of another kind than plain LoRA, which alone is read here")
    pairs, full = _paired(state, file)
    factors = _factors({path: len(down) for path, (down, _) in pairs.items()}, alphas, settings)
    base = settings.get("base_model_name_or_path")
    return Adapter(where, scale, {path: (*pair, factors[path]) for path, pair in pairs.items()}, full, base)


@torch.no_grad()
def merge_adapter(denoiser: VideoUNet, adapter: Adapter) -> None:
    """Add ``scale`` times the adapter to the denoiser's weights.

    Raises ``UserError``, with the denoiser as it was, if a layer does not exist or has another shape.
    """
    weights = {_published(name): parameter for name, parameter in denoiser.unet.named_parameters()}
    sizes = {f"{path}.weight": _matrix(up.shape[:1] + down.shape[1:]) for path, (down, up, _) in adapter.pairs.items()}
    sizes |= {name: _matrix(value.shape) for name, value in adapter.full.items()}
    for name, size in sizes.items():
        own = _matrix(weights[name].shape) if name in weights else None
        if own != size:
            problem = "is not in" if own is None else f"is {size[0]} x {size[1]}, {own[0]} x {own[1]} in"
            base = adapter.base or "another model"
            raise UserError(
                f"{adapter.where}: '{name}' {problem} this model; it was made for {base}, give --model that"
            )
    for path, (down, up, factor) in adapter.pairs.items():
        weight = weights[f"{path}.weight"]
        change = up.flatten(1).to(weight) @ down.flatten(1).to(weight)  # out in, with a kernel's sides in `in`
        weight.add_(change.view_as(weight), alpha=adapter.scale * factor)
    random = _begun_at_random(denoiser)
    for name, value in adapter.full.items():
        weight = weights[name]
        weight.lerp_(value.to(weight).view_as(weight), 1.0 if id(weight) in random else adapter.scale)


def open_adapted(name: str | Path, adapter: Adapter | None, variant: str | None = None) -> VideoModel:
    """:func:`open_model` for sampling, with ``adapter`` merged in.

    A published checkpoint gets temporal layers only where the adapter brings them: untrained, they change nothing.
    """
    if adapter is None:
        return open_model(name, variant=variant, temporal=FRAME_BY_FRAME)
    model = open_model(name, variant=variant, temporal=adapter.layers)
    merge_adapter(model.denoiser, adapter)
    return model


def _begun_at_random(denoiser: VideoUNet) -> set[int]:
    """The weights (ids) of new temporal layers, of which a share means nothing.

    Those that lead out of the layers are left out: they began at zero, and to scale them is to scale the layer.
    """
    if not is_new(denoiser):
        return set()
    ways_out = [layer for block in temporal_blocks(denoiser).values() for layer in block.output_layers()]
    zero = {id(parameter) for layer in ways_out for parameter in layer.parameters()}
    return {id(parameter) for parameter in denoiser.temporal_parameters()} - zero


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a weight, of which a convolution's kernel is part of the columns."""
    return shape[:1].numel(), shape[1:].numel()


def _published(name: str) -> str:
    """Our name of a weight of the inflated UNet -> diffusers' and peft's."""
    return name.replace(".spatial.", ".", 1).replace(f".{_NAME}.", ".")


def _trained(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """The parameters of the adapters and of what is trained in full, by their published names."""
    config = getattr(unet, "peft_config", {}).get(_NAME)
    if config is None:
        return {}
    full = set(config.modules_to_save or ())
    return {
        _published(name): parameter
        for name, parameter in unet.named_parameters()
        if ".lora_" in name or full.intersection(name.split("."))
    }


def _split_scale(name: str) -> tuple[Path, float]:
    path, colon, number = name.rpartition(":")
    try:
        scale = float(number) if colon else 1.0
    except ValueError:  # the colon is the path's
        return Path(name), 1.0
    if not math.isfinite(scale):
        raise UserError(f"the scale of --lora {name} is no finite number; 1 takes the adapter as it was trained")
    return Path(path or name), scale


def _weights_file(path: Path) -> Path:
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
    return path / WEIGHTS  # whose absence, or a pickle in its place, is explained where it is read


def _read_diffusers(file: Path) -> tuple[dict[str, Tensor], dict[str, float], Mapping[str, Any]]:
    """Weights of the UNet with peft's names, alphas by layer, and settings where the header has them."""
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
    # Alphas are named by layer, or by the layer's first weight, in the older names.
    named = {key.removeprefix("unet.").removesuffix(".alpha"): value for key, value in (alphas or {}).items()}
    by_layer = {key.partition(".lora_A")[0]: value for key, value in convert_unet_state_dict_to_peft(named).items()}
    unet = convert_unet_state_dict_to_peft(unet)
    if other := [key for key in unet if ".lora_" not in key]:
        raise UserError(f"{file}: '{other[0]}' is no LoRA weight; only plain LoRA is read here")
    return unet, by_layer, {key.removeprefix("unet."): value for key, value in (settings or {}).items()}


def _paired(state: Mapping[str, Tensor], file: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Down and up by layer, and what is no adapter."""
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


def _factors(ranks: Mapping[str, int], alphas: Mapping[str, float], settings: Mapping[str, Any]) -> dict[str, float]:
    """What the product of each layer's factors is multiplied by: alpha / rank, and 1 where nothing tells alpha."""
    patterns, common = settings.get("alpha_pattern") or {}, settings.get("lora_alpha")
    factors = {}
    for path, rank in ranks.items():
        alpha = patterns.get(get_pattern_key(list(patterns), path), alphas.get(path, common))
        root = math.sqrt(rank) if settings.get("use_rslora") else rank  # arXiv:2312.03732
        factors[path] = 1.0 if alpha is None else float(alpha) / root
    return factors
