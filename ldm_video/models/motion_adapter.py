"""Initialise the temporal attention from AnimateDiff's motion modules (arXiv:2307.04725).

Both follow each of a UNet's (resnet, attention) pairs. They add to a pixel's channels ``x``, over its frames:

    AnimateDiff    proj_out(h + attn1(norm1(h) + position) + attn2(...) + ff(...)),  h = proj_in(group_norm(x))
    ours           to_out(rotary_attention(attention_norm(x)))

Their first attention reads ``norm1(h)``, ours reads normalised ``x``, and :func:`fold` multiplies the layers in between
into the query, key and value projections. This is exact except for three things: ``norm1`` divides each pixel by its
own deviation, here replaced by the expected one; the statistics of the group norm become those of the layer norm; and
the constant that the biases of ``proj_in`` and ``norm1`` add is dropped, since our projections have no bias.

The rest has no counterpart. Positions rotate queries and keys here, but are added there, to values as well. There is no
second attention and no feed-forward here. ``proj_out`` writes the sum of all of these, so it is not loaded either. Our
output projection stays zero: until trained, the model's output is bit-identical to before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from torch import Tensor

from ldm_video.core.checkpoints import read_json, read_weights
from ldm_video.core.errors import UserError
from ldm_video.models.export import is_new, temporal_blocks
from ldm_video.models.inflate import VideoUNet
from ldm_video.models.open_model import find_model
from ldm_video.models.temporal import TemporalBlock

PUBLISHED_HEADS = 8  # of all motion modules that AnimateDiff published
_LAYER = re.compile(r"((?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.motion_modules\.\d+)\.(.+)")
_FIRST = "transformer_blocks.0."
FOLDED = (
    "norm.weight",
    "norm.bias",
    "proj_in.weight",
    f"{_FIRST}norm1.weight",
    *(f"{_FIRST}attn1.to_{name}.weight" for name in "qkv"),
)
"""The tensors of a motion module that are loaded."""
_POSITIONS = "positions: rotary here, added there"

State = dict[str, Tensor]


@dataclass(frozen=True)
class MotionAdapter:
    """Motion modules as read from a file.

    Attributes:
        layers: path such as ``down_blocks.0.motion_modules.1`` -> its tensors, under diffusers' names.
        heads: attention heads in each ``down_blocks`` level; ``up_blocks`` use the reverse order.
        positions: names of stored position tables.
        others: names of tensors that do not belong to motion modules.
    """

    layers: Mapping[str, State]
    heads: Sequence[int]
    positions: Sequence[str] = ()
    others: Sequence[str] = ()

    def heads_of(self, layer: str) -> int:
        side, index = layer.split(".")[:2]
        level = -1 if side == "mid_block" else int(index)
        return self.heads[-1 - level if side == "up_blocks" else level]


@dataclass
class MotionReport:
    """Which of an adapter's tensors were loaded, and which tensors of the denoiser were written.

    Attributes:
        loaded: the adapter's layers that were loaded.
        used: names of the adapter's tensors that were loaded.
        written: names of the denoiser's tensors computed from them.
        left: reason -> names of the adapter's tensors that were not loaded.
        untouched: paths of our temporal attention layers that were not written.
    """

    loaded: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=dict)
    untouched: list[str] = field(default_factory=list)

    def leave(self, reason: str, names: Sequence[str]) -> None:
        if names:
            self.left.setdefault(reason, []).extend(names)

    def lines(self) -> list[str]:
        """Return the report for the user, with counts."""
        total = len(self.used) + sum(map(len, self.left.values()))
        return [
            f"loaded: {len(self.used)} of {total} tensors of the adapter, from {len(self.loaded)} layers, into "
            f"{len(self.written)} tensors of temporal attention (norm, queries, keys, values)",
            *(f"not loaded: {len(names)} tensors: {reason}" for reason, names in self.left.items()),
            *([f"left as it was: temporal attention after {', '.join(self.untouched)}"] if self.untouched else []),
            "the output projections stay zero: until it is trained, the model gives exactly what it gave before",
        ]


def read_motion_adapter(path: str | Path) -> MotionAdapter:
    """Read a diffusers ``MotionAdapter`` folder, or a ``.safetensors`` file with diffusers' or AnimateDiff's names.

    Raises ``UserError`` for anything else; for a pickle, the message has a command that converts it.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give the folder or the .safetensors file of a motion adapter")
    config: dict[str, Any] = {}
    weights = find_model(path)  # raises for pickles
    if path.is_dir():
        if not (path / "config.json").is_file():  # such as a bundle
            raise UserError(
                f"{path} is not a motion adapter: it has no config.json; give the folder of a diffusers "
                "MotionAdapter or a .safetensors file of AnimateDiff"
            )
        config = read_json(path / "config.json")
        if config.get("_class_name") != "MotionAdapter":
            raise UserError(f"{path / 'config.json'} is of a {config.get('_class_name')}, not of a MotionAdapter")
        weights = _weights_file(path)
    raw = {key.removeprefix("module."): value for key, value in read_weights(weights).items()}  # DataParallel's prefix
    layers: dict[str, State] = {}
    others = []
    for key, value in convert_animatediff_checkpoint_to_diffusers(raw).items():
        if found := _LAYER.fullmatch(key):
            layers.setdefault(found[1], {})[found[2]] = value.float()
        else:
            others.append(key)
    if not layers:
        raise UserError(f"{path} holds no AnimateDiff motion modules; give a MotionAdapter of diffusers or AnimateDiff")
    for layer, state in layers.items():
        if missing := sorted({*FOLDED, "proj_in.bias"} - state.keys()):
            raise UserError(f"{path}: key '{layer}.{missing[0]}' missing; the motion adapter is not whole")
    levels = 1 + max((int(layer.split(".")[1]) for layer in layers if layer.startswith("down_blocks")), default=0)
    heads = config.get("motion_num_attention_heads", PUBLISHED_HEADS)
    return MotionAdapter(
        layers=layers,
        heads=heads if isinstance(heads, list) else [heads] * levels,
        positions=[key for key in raw if "pos_encoder" in key],
        others=others,
    )


def load_motion(denoiser: VideoUNet, adapter: MotionAdapter) -> MotionReport:
    """Load matching layers into the temporal attention of ``denoiser``, in place; output projections stay zero.

    A layer is loaded if its width and number of heads match. Raises ``UserError`` if none does, if there is no temporal
    attention, if the temporal layers are already trained, or if the adapter's UNet has a different number of levels.
    """
    levels = len(denoiser.unet.config["block_out_channels"])
    if len(adapter.heads) != levels:
        raise UserError(f"the adapter is for a UNet of {len(adapter.heads)} levels, the model's has {levels}")
    if not is_new(denoiser):
        raise UserError("the model's temporal layers are trained; a motion adapter is a start for new ones only")
    blocks = {_motion_name(path): (path, block) for path, block in temporal_blocks(denoiser).items() if block.attention}
    if not blocks:
        raise UserError(
            "the model has no temporal attention to be loaded into; make the bundle without --head-dim 0: to-bundle "
            f"--heads {adapter.heads[0]}"
        )
    report = MotionReport(untouched=[path for name, (path, _) in blocks.items() if name not in adapter.layers])
    for layer, state in adapter.layers.items():
        path, block = blocks.get(layer, ("", None))
        if reason := _misfit(state, adapter.heads_of(layer), block):
            report.leave(reason, [f"{layer}.{name}" for name in state])
            report.untouched += [path] if path else []
            continue
        assert block is not None
        folded = fold(state)
        block.load_state_dict({**block.state_dict(), **folded})
        report.loaded.append(layer)
        report.used += [f"{layer}.{name}" for name in FOLDED]
        report.written += [f"unet.{path}.temporal.{name}" for name in folded]
        for name in sorted(state.keys() - set(FOLDED)):
            report.leave(_skip_reason(name), [f"{layer}.{name}"])
    report.leave(_POSITIONS, adapter.positions)
    report.leave("no motion module", adapter.others)
    if not report.loaded:
        raise UserError(f"nothing of the adapter fits: {'; '.join(report.left)}. {_advice(adapter)}")
    return report


def fold(layer: Mapping[str, Tensor]) -> State:
    """Convert a motion module's first attention to one that reads the UNet's own channels; see the module's docstring.

    Write ``norm1`` without its bias as ``gamma * C h / deviation(C h)``, where ``C`` centres over channels. Then the
    combined query projection is ``to_q diag(gamma) C proj_in / s``, where ``s`` is the root mean square of ``C h`` for
    unit normal ``x``.

    Returns the tensors of a :class:`~ldm_video.models.temporal.TemporalBlock` that it determines, by name.
    """
    scale, shift = layer["norm.weight"], layer["norm.bias"]  # of the group norm: c
    centred = layer["proj_in.weight"] - layer["proj_in.weight"].mean(dim=0)  # C proj_in: c c
    offset = centred @ shift + layer["proj_in.bias"] - layer["proj_in.bias"].mean()  # c
    variance = ((centred * scale).square().sum() + offset.square().sum()) / len(scale)
    enter = layer[f"{_FIRST}norm1.weight"][:, None] * centred / variance.clamp(min=1e-12).sqrt()
    projections = {f"attention.to_{name}.weight": layer[f"{_FIRST}attn1.to_{name}.weight"] @ enter for name in "qkv"}
    return {"attention_norm.weight": scale, "attention_norm.bias": shift, **projections}


def _motion_name(path: str) -> str:
    """``down_blocks.0.attentions.1``, a wrapped layer of the UNet -> ``down_blocks.0.motion_modules.1``."""
    return re.sub(r"\.(attentions|resnets)\.", ".motion_modules.", path)


def _misfit(state: State, heads: int, block: TemporalBlock | None) -> str | None:
    """Return why a motion module cannot be loaded into a temporal block; None if it can."""
    if block is None or block.attention is None:
        return "the model has no temporal attention there"
    ours, theirs = len(block.attention_norm.weight), len(state["norm.weight"])
    if (ours, block.attention.heads) != (theirs, heads):
        return f"{heads} heads of {theirs // heads} channels there, {block.attention.heads} of " + (
            f"{ours // block.attention.heads} here"
        )
    if any(state[name].shape != (ours,) * (1 if "norm" in name else 2) for name in FOLDED):
        return "inner width other than the UNet's"
    return None


def _skip_reason(name: str) -> str:
    if "pos_embed" in name:
        return _POSITIONS
    if re.search(r"transformer_blocks\.0\.(attn2|ff|norm2|norm3)\.", name):
        return "second attention and feed-forward: none here"
    if "proj_out" in name or f"{_FIRST}attn1.to_out" in name:
        return "outputs: they write the sum of what is not all here"
    if name in ("proj_in.bias", f"{_FIRST}norm1.bias"):
        return "biases of what queries, keys and values read: these have none here"
    return "further layers: none here"


def _advice(adapter: MotionAdapter) -> str:
    return f"Make the bundle with: to-bundle --heads {adapter.heads[0]}"


def _weights_file(folder: Path) -> Path:
    """Return the plain weights file of a diffusers folder, or that of its only variant."""
    plain = folder / "diffusion_pytorch_model.safetensors"
    variants = sorted(folder.glob("diffusion_pytorch_model.*.safetensors"))
    return plain if plain.is_file() or len(variants) != 1 else variants[0]
