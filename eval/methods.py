"""The methods of the benchmark, behind one interface: a low-res file and perhaps a mask in, a high-res file out.

Third-party methods (Real-ESRGAN, BasicVSR, ...) are in :mod:`eval.peers`; each needs its own packages and weights.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from tempfile import TemporaryFile
from typing import Protocol

import cv2
import numpy as np

from eval.file_states import REPOSITORY, code_digest, file_states
from eval.framewise import GROW_LOWRES_PIXELS, enlarge, frame_by_frame, grow, shared_code
from eval.inputs import LOSSLESS
from eval.measure import wait_for
from eval.peers.basicvsr import BasicVSR
from eval.peers.migan import MIGAN
from eval.peers.realesrgan import RealESRGAN
from eval.peers.stable_diffusion import StableDiffusionInpaint, StableDiffusionUpscaler
from ldm_video.core.errors import UserError

OUR_CODE = ("infer.py", "ldm_video/**/*.py", "configs/infer/*.yaml")
INPAINT_RADIUS = 3  # pixels, as in OpenCV's own example


class Method(Protocol):
    """``method(lowres, mask, scale, output)`` writes ``output`` (.mkv, lossless), ``scale`` times larger.

    ``fills``: without a mask it does nothing that another method does not. ``identity`` changes whenever results may.
    ``missing``: a line that says why the method cannot run here and what installs it; None if it can. Methods are
    picklable.
    """

    @property
    def name(self) -> str: ...

    @property
    def fills(self) -> bool: ...

    def identity(self) -> str: ...

    def missing(self, scale: int) -> str | None: ...

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None: ...


@dataclass(frozen=True)
class Interpolation:
    """Each frame resized by OpenCV; paint in a hole is resized with it."""

    name: str
    kernel: int
    fills: bool = False

    def identity(self) -> str:
        return f"{self.name} opencv {cv2.__version__} {shared_code()}"

    def missing(self, scale: int) -> str | None:
        return None

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        frame_by_frame(lowres, mask, scale, output, lambda frame, _: enlarge(frame, scale, self.kernel))


@dataclass(frozen=True)
class ClassicInpainting:
    """Bicubic, then OpenCV's inpainting of each frame at output size, in a slightly dilated hole."""

    name: str
    algorithm: int
    fills: bool = True

    def identity(self) -> str:
        return f"{self.name} {INPAINT_RADIUS} {GROW_LOWRES_PIXELS} opencv {cv2.__version__} {shared_code()}"

    def missing(self, scale: int) -> str | None:
        return None

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        def one(frame: np.ndarray, hole: np.ndarray) -> np.ndarray:
            large = enlarge(frame, scale)
            return cv2.inpaint(large, grow(hole, scale), INPAINT_RADIUS, self.algorithm) if hole.any() else large

        frame_by_frame(lowres, mask, scale, output, one)


@dataclass(frozen=True)
class Ours:
    """``infer.py`` in its own process, as a user runs it; its time includes start-up and loading.

    ``device``: used unless ``options`` name one; None leaves it to ``infer.py``, which takes a GPU if there is one.
    """

    model: str | None = None
    options: tuple[str, ...] = ()
    name: str = "ours"
    fills: bool = False
    device: str | None = None

    def identity(self) -> str:
        model = Path(self.model) if self.model else REPOSITORY / "ldm_video" / "weights"
        code = code_digest(REPOSITORY, *OUR_CODE)
        return f"{self.name} {self.model} {self.options} {self.device} {file_states(model)} {code}"

    def missing(self, scale: int) -> str | None:
        return None

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "infer.py", "--input", str(lowres.resolve()), "--output", str(output.resolve())]
        command += ["--scale", str(scale), "--codec", LOSSLESS, "--overwrite", *self.options]
        if self.device is not None and not _names_device(self.options):
            command += ["--device", self.device]
        command += ["--model", str(Path(self.model).resolve())] if self.model else []
        command += ["--mask", str(mask.resolve())] if mask is not None else []
        with TemporaryFile() as messages:
            with Popen(command, cwd=REPOSITORY, stdout=DEVNULL, stderr=messages) as process:
                wait_for(process)
            messages.seek(0)
            lines = messages.read().decode(errors="replace").strip().splitlines() or ["no message"]
        if process.returncode != 0:
            raise UserError(f"infer.py ended with {process.returncode} on {lowres}: {lines[-1]}")


def _names_device(options: tuple[str, ...]) -> bool:
    """Return whether options of ``infer.py`` name a device: ``--device``, perhaps abbreviated, or ``device=``."""
    words = [option.partition("=")[0] for option in options]
    return "device" in words or any(word.startswith("--de") and "--device".startswith(word) for word in words)


def infer_options(name: str, text: str) -> tuple[str, ...]:
    """Split options for ``infer.py``, given as one string, with shell quoting. ``name``: of the option, for errors.

    Raises ``UserError`` for an unclosed quotation.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"{name} {text!r}: {error}; close the quotation") from error


@dataclass(frozen=True)
class Settings:
    """Where methods find weights that no package provides. ``model`` and ``options`` are those of ``ours``.

    ``migan`` is an ONNX file, ``sd_upscaler`` and ``sd_inpaint`` are diffusers checkpoint folders; ``device`` is for
    ``ours`` and the peers that use torch.
    """

    model: str | None = None
    options: tuple[str, ...] = ()
    migan: Path | None = None
    sd_upscaler: Path | None = None
    sd_inpaint: Path | None = None
    device: str = "cpu"


def known_methods(settings: Settings) -> Mapping[str, Method]:
    """Return all methods by name, whether they can run here or not."""
    methods: tuple[Method, ...] = (
        Interpolation("bicubic", cv2.INTER_CUBIC),
        Interpolation("lanczos", cv2.INTER_LANCZOS4),
        ClassicInpainting("telea", cv2.INPAINT_TELEA),
        ClassicInpainting("navier_stokes", cv2.INPAINT_NS),
        RealESRGAN("real_esrgan_x4plus", "REALESRGAN_X4PLUS_UP4X"),
        RealESRGAN("real_esrgan_animevideov3", "REALESRGAN_ANIMAVIDEOV3_UP4X"),
        BasicVSR(settings.device),
        MIGAN(settings.migan),
        StableDiffusionUpscaler(settings.sd_upscaler, settings.device),
        StableDiffusionInpaint(settings.sd_inpaint, settings.device),
        Ours(settings.model, settings.options, device=settings.device),
    )
    return {method.name: method for method in methods}


def find_methods(names: list[str], settings: Settings | None = None) -> list[Method]:
    """Look up methods by name. ``UserError`` for an unknown name."""
    known = known_methods(settings or Settings())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"unknown method {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names]
