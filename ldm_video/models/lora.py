"""Low-rank adapters (LoRA, arXiv:2106.09685) on the denoiser's attention: few trained weights, a small file.

A layer with weight ``W`` gets two factors, ``down`` (rank x in) and ``up`` (out x rank), and computes ``W + alpha /
rank * up @ down``. Training injects them with peft and freezes ``W``; loading adds the product to ``W`` once, so
sampling costs nothing extra.

Files are in peft's format: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, with weight names
of the diffusers UNet (``base_model.model.down_blocks.1.attentions.0...to_q.lora_A.weight``), without this project's
wrappers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm_video.core.checkpoints import read_json, read_weights
from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path
from ldm_video.models.export import is_new, temporal_blocks
from ldm_video.models.inflate import VideoUNet
from ldm_video.models.lora_file import (
    CONFIG,
    WEIGHTS,
    factors,
    paired,
    read_diffusers,
    refuse_other_kinds,
    split_scale,
    weights_file,
)
from ldm_video.models.open_model import FRAME_BY_FRAME, open_model
from ldm_video.models.temporal import TemporalConfig
from ldm_video.models.video_model import VideoModel

_PREFIX = "base_model.model."  # peft's prefix of every weight name
_NAME = "default"  # of the adapter within the model
_LAYERS = ["to_k", "to_out.0", "to_q", "to_v"]
_ATTENTION = r".*\.to_(q|k|v|out\.0)"
_FULL = ("temporal", "conv_in")


@dataclass(frozen=True)
class LoRA:
    """What is trained instead of the whole model.

    Attributes:
        rank: of the adapters of the spatial attention (to_q, to_k, to_v, to_out.0); None for no adapters.
        alpha: the product of the factors is multiplied by ``alpha / rank``.
        temporal: also add adapters to the temporal attention, in a model whose temporal layers are trained.
        full: what is trained and stored in full: ``temporal`` layers, and ``conv_in``, which reads the evidence. Layers
            that a published checkpoint does not have are initialised at random in each process, so a file without them
            would be useless.

    Raises:
        ValueError: an option is out of range or unknown, or temporal layers are to be trained both ways.
    """

    rank: int | None = None
    alpha: int = 16
    temporal: bool = False
    full: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(f"rank is a whole number from 1 up, or null for no adapters, not {self.rank}")
        if not isinstance(self.alpha, int) or self.alpha < 1:  # as peft requires
            raise ValueError(f"alpha is a whole number from 1 up, not {self.alpha}")
        if unknown := [name for name in self.full if name not in _FULL]:
            raise ValueError(f"full takes {' and '.join(_FULL)}, not {unknown[0]!r}")
        if self.temporal and "temporal" in self.full:
            raise ValueError("temporal layers get adapters or are trained in full, not both")

    @property
    def layers(self) -> TemporalConfig | None:
        """Temporal layers to add to a published checkpoint for training; None for the default ones.

        No layers if they would stay untrained.
        """
        return None if "temporal" in self.full else FRAME_BY_FRAME


def add_adapters(denoiser: VideoUNet, lora: LoRA) -> None:
    """Inject adapters of rank ``lora.rank``, which must not be None; the output initially stays bit-identical.

    :func:`adapter_parameters` returns what to train. Raises ``UserError`` if the denoiser does not have the layers.
    """
    if lora.temporal and is_new(denoiser):
        raise UserError("the model has no trained temporal layers to adapt; lora.full=[temporal] trains new ones")
    if "temporal" in lora.full and not any(True for _ in denoiser.temporal_parameters()):
        raise UserError("the model has no temporal layers to train; leave them out of lora.full")
    assert lora.rank is not None
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        # Temporal blocks are inside the UNet, and their layers have the same names.
        target_modules=_ATTENTION if lora.temporal else rf"(?!.*\.temporal\.){_ATTENTION}",
    )
    try:
        denoiser.unet.add_adapter(config, _NAME)
    except ValueError as error:  # peft's message only names the pattern
        which = "attention" if lora.temporal else "spatial attention"
        raise UserError(f"the model has no {which} to adapt; set lora.rank=null") from error
    # Set only now: peft would have kept a second copy of these modules.
    config.modules_to_save = list(lora.full) or None


def adapter_parameters(denoiser: VideoUNet) -> list[nn.Parameter]:
    """Return the trained parameters of a denoiser with adapters; an empty list without adapters."""
    return list(_trained_parameters(denoiser.unet).values())


def save_adapter(denoiser: VideoUNet, folder: str | Path, base: str, dtype: torch.dtype | None = None) -> None:
    """Write the adapters of ``denoiser`` to ``folder`` in peft's layout, atomically.

    Args:
        denoiser: with adapters from :func:`add_adapters`.
        folder: is replaced if it exists.
        base: name of the model that the adapters belong to.
        dtype: of the stored weights; None keeps theirs.

    Raises ``UserError`` if the folder cannot be written.
    """
    running = denoiser.unet.peft_config[_NAME]
    config = LoraConfig(
        base_model_name_or_path=base,
        r=running.r,
        lora_alpha=running.lora_alpha,
        modules_to_save=running.modules_to_save,
        inference_mode=True,
    )
    config.target_modules = _LAYERS  # the constructor would turn it into a set, whose order varies
    state = {
        _PREFIX + name: value.detach().to("cpu", dtype) for name, value in _trained_parameters(denoiser.unet).items()
    }
    # Diffusers does not read adapter_config.json, only the header.
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
        except SafetensorError as error:  # it wraps the OS error and drops its errno
            raise UserError(f"cannot write {folder} ({error}); free some space or choose another folder") from error


@dataclass(frozen=True)
class Adapter:
    """An adapter read from disk.

    Attributes:
        where: the folder or file, for error messages.
        scale: strength at which to apply it; 1 as trained, 0 not at all.
        pairs: name of the layer in the diffusers UNet -> down, up and the factor of their product.
        full: weights stored in full, by name.
        base: the model that it was trained on, if stored.
    """

    where: Path
    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor, float]]
    full: Mapping[str, Tensor]
    base: str | None

    @property
    def layers(self) -> TemporalConfig | None:
        """Temporal layers that a published checkpoint needs for this adapter; None for the default ones."""
        return None if any(".temporal." in name for name in self.full) else FRAME_BY_FRAME


def read_adapter(name: str) -> Adapter:
    """Read ``FOLDER_OR_FILE[:scale]``: an adapter in peft's format, or a Stable Diffusion LoRA of diffusers or kohya.

    Raises ``UserError`` if it is missing, damaged, a pickle, or of another kind (DoRA, LoKr, LoHa, PiSSA).
    """
    path, scale = split_scale(name)
    file = weights_file(path)
    state = read_weights(file)
    where = file
    alphas: Mapping[str, float] = {}
    if state and all(key.startswith(_PREFIX) for key in state):
        where = file.parent  # two files make up the adapter
        settings: Mapping[str, Any] = read_json(file.with_name(CONFIG))
        state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    elif any("lora" in key for key in state) and not any("dora_scale" in key for key in state):
        state, alphas, settings = read_diffusers(file)
    else:
        raise UserError(f"{file} holds no plain LoRA; give an adapter's folder or .safetensors file")
    refuse_other_kinds(settings, file)
    pairs, full = paired(state, file)
    scales = factors({path: len(down) for path, (down, _) in pairs.items()}, alphas, settings)
    base = settings.get("base_model_name_or_path")
    return Adapter(where, scale, {path: (*pair, scales[path]) for path, pair in pairs.items()}, full, base)


@torch.no_grad()
def merge_adapter(denoiser: VideoUNet, adapter: Adapter) -> None:
    """Add ``scale`` times the adapter to the denoiser's weights, in place.

    Changes to the input channels of a published UNet apply to the first channels of a grown ``conv_in``.

    Raises ``UserError``, leaving the denoiser unchanged, if a layer does not exist or has another shape.
    """
    weights = {_published_name(name): parameter for name, parameter in denoiser.unet.named_parameters()}
    shapes = {f"{path}.weight": up.shape[:1] + down.shape[1:] for path, (down, up, _) in adapter.pairs.items()}
    shapes |= {name: value.shape for name, value in adapter.full.items()}
    places = {name: _target_part(weights[name], name, shape) for name, shape in shapes.items() if name in weights}
    for name, shape in shapes.items():
        size, own = _matrix_shape(shape), _matrix_shape(places[name].shape) if name in places else None
        if own != size:
            problem = "is not in" if own is None else f"is {size[0]} x {size[1]}, {own[0]} x {own[1]} in"
            base = adapter.base or "another model"
            raise UserError(
                f"{adapter.where}: '{name}' {problem} this model; it was made for {base}, give --model that"
            )
    for path, (down, up, factor) in adapter.pairs.items():
        weight = places[f"{path}.weight"]
        change = up.flatten(1).to(weight) @ down.flatten(1).to(weight)  # out in; `in` includes the sides of a kernel
        weight.add_(change.view_as(weight), alpha=adapter.scale * factor)
    random_ids = _random_weights(denoiser)
    for name, value in adapter.full.items():
        weight, share = places[name], 1.0 if id(weights[name]) in random_ids else adapter.scale
        weight.lerp_(value.to(weight).view_as(weight), share)


def open_adapted(name: str | Path, adapter: Adapter | None, variant: str | None = None) -> VideoModel:
    """:func:`open_model` for sampling, with ``adapter`` merged in.

    A published checkpoint gets temporal layers only if the adapter contains them: untrained layers change nothing.
    """
    if adapter is None:
        return open_model(name, variant=variant, temporal=FRAME_BY_FRAME)
    model = open_model(name, variant=variant, temporal=adapter.layers)
    merge_adapter(model.denoiser, adapter)
    return model


def _random_weights(denoiser: VideoUNet) -> set[int]:
    """Return the ids of randomly initialised weights in untrained temporal layers; interpolating those is meaningless.

    Output layers are excluded: they started at zero, so scaling their weights scales the layer.
    """
    if not is_new(denoiser):
        return set()
    output_layers = [layer for block in temporal_blocks(denoiser).values() for layer in block.output_layers()]
    zero = {id(parameter) for layer in output_layers for parameter in layer.parameters()}
    return {id(parameter) for parameter in denoiser.temporal_parameters()} - zero


def _matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """Return rows and columns of a weight, with the sides of a convolution kernel counted as columns."""
    return shape[:1].numel(), shape[1:].numel()


def _target_part(weight: Tensor, name: str, shape: torch.Size) -> Tensor:
    """Return the part of ``weight`` that a change of ``shape`` is for: the first channels of a grown ``conv_in``."""
    grown = name == "conv_in.weight" and shape[2:] == weight.shape[2:] and shape[1] < weight.shape[1]
    return weight[:, : shape[1]] if grown else weight  # grow_conv_in appends


def _published_name(name: str) -> str:
    """Convert the name of a weight in the inflated UNet to the name in diffusers and peft."""
    return name.replace(".spatial.", ".", 1).replace(f".{_NAME}.", ".")


def _trained_parameters(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """Return the parameters of adapters and of layers trained in full, by their published names."""
    config = getattr(unet, "peft_config", {}).get(_NAME)
    if config is None:
        return {}
    full = set(config.modules_to_save or ())
    return {
        _published_name(name): parameter
        for name, parameter in unet.named_parameters()
        if ".lora_" in name or full.intersection(name.split("."))
    }
