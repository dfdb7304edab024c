"""The methods of the benchmark, all behind one door: a low-res file and perhaps a mask in, a high-res file out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from einops import rearrange

from eval.inputs import LOSSLESS
from ldm_video.core.errors import UserError
from ldm_video.video_io.masks import read_mask
from ldm_video.video_io.probe import DEFAULT_RATE, probe
from ldm_video.video_io.reader import FrameReader
from ldm_video.video_io.writer import VideoWriter

REPOSITORY = Path(__file__).resolve().parent.parent
INPAINT_RADIUS = 3  # pixels, OpenCV's own example
# The resize kernel smears what is painted in the hole over two low-res pixels, and a codec over a little more: who
# starts from the mask's very border inpaints with that paint.
GROW_LOWRES_PIXELS = 3


class Method(Protocol):
    """``method(lowres, mask, scale, output)`` writes ``output`` (.mkv, lossless), ``scale`` times larger.

    ``fills``: without a mask it has nothing to do that another method does not. ``identity`` changes when results may.
    """

    @property
    def name(self) -> str: ...

    @property
    def fills(self) -> bool: ...

    def identity(self) -> str: ...

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None: ...


@dataclass(frozen=True)
class Interpolation:
    """Each frame enlarged by OpenCV; a hole shows its paint, enlarged."""

    name: str
    kernel: int
    fills: bool = False

    def identity(self) -> str:
        return f"{self.name} opencv {cv2.__version__}"

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        _frame_by_frame(lowres, mask, scale, output, lambda frame, _: enlarge(frame, scale, self.kernel))


@dataclass(frozen=True)
class ClassicInpainting:
    """Bicubic, then OpenCV's inpainting of each frame at the output's size, in a slightly grown hole."""

    name: str
    algorithm: int
    fills: bool = True

    def identity(self) -> str:
        return f"{self.name} {INPAINT_RADIUS} {GROW_LOWRES_PIXELS} opencv {cv2.__version__}"

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        reach = GROW_LOWRES_PIXELS * scale
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))

        def one(frame: np.ndarray, hole: np.ndarray) -> np.ndarray:
            large = enlarge(frame, scale, cv2.INTER_CUBIC)
            if not hole.any():
                return large
            return cv2.inpaint(large, cv2.dilate(hole, kernel), INPAINT_RADIUS, self.algorithm)

        _frame_by_frame(lowres, mask, scale, output, one)


@dataclass(frozen=True)
class Ours:
    """``infer.py`` in a process of its own, as a user runs it; start-up and loading count in its time."""

    model: str | None = None
    options: tuple[str, ...] = ()
    name: str = "ours"
    fills: bool = False

    def identity(self) -> str:
        files = sorted(Path(self.model).rglob("*")) if self.model else []
        state = [(str(file), file.stat().st_mtime_ns) for file in files]
        return f"{self.name} {self.model} {self.options} {state}"

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "infer.py", "--input", str(lowres.resolve()), "--output", str(output.resolve())]
        command += ["--scale", str(scale), "--codec", LOSSLESS, "--overwrite", *self.options]
        command += ["--model", str(Path(self.model).resolve())] if self.model else []
        command += ["--mask", str(mask.resolve())] if mask is not None else []
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise UserError(f"infer.py ended with {done.returncode} on {lowres}: {lines[-1]}")


def find_methods(names: list[str], model: str | None = None, options: tuple[str, ...] = ()) -> list[Method]:
    """Methods by name; ``model`` and ``options`` are for ``ours``. ``UserError`` for an unknown name."""
    known: dict[str, Method] = {
        method.name: method
        for method in (
            Interpolation("bicubic", cv2.INTER_CUBIC),
            Interpolation("lanczos", cv2.INTER_LANCZOS4),
            ClassicInpainting("telea", cv2.INPAINT_TELEA),
            ClassicInpainting("navier_stokes", cv2.INPAINT_NS),
            Ours(model, options),
        )
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"unknown method {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names]


def enlarge(frame: np.ndarray, scale: int, kernel: int) -> np.ndarray:
    """``h w 3`` uint8 -> ``scale`` times larger."""
    return cv2.resize(frame, (frame.shape[1] * scale, frame.shape[0] * scale), interpolation=kernel)


def _frame_by_frame(
    lowres: Path, mask: Path | None, scale: int, output: Path, one: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Run ``one(frame h w 3, hole H W) -> H W 3`` (uint8; hole in {0, 1} at the output's size) on every frame."""
    info = probe(lowres)
    size = (info.height * scale, info.width * scale)
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        FrameReader(lowres, deinterlace="off") as reader,
        read_mask(mask, None, size, None) as holes,
        VideoWriter(output, size, None, info.rate or DEFAULT_RATE, codec=LOSSLESS, overwrite=True) as writer,
    ):
        for frame in reader:
            pixels = rearrange(frame.pixels, "c h w -> h w c").add(1).mul(127.5).round().byte().numpy()
            large = one(pixels, holes.at(frame.index)[0].byte().numpy())
            writer.write(rearrange(torch.from_numpy(large).float(), "h w c -> c h w") / 127.5 - 1)
