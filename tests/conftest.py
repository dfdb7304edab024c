"""Shared fixtures: one thread per worker, one seed per test, real clips where they are, a tiny clip everywhere."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; read when torch and OpenCV load, so set it before
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

import random
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("deterministic", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("deterministic")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the ``gpu`` tests, with the reason, on a machine that has none."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch  # only now: most runs do not select a gpu test, and torch takes seconds to load

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Weight initialisation draws from the global generators: the same numbers in any order, alone or in a crowd."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_process_group_stays() -> Iterator[None]:
    """A training run with DDP in this process leaves its port open and named in the environment: the next run, and the
    processes that a test starts, would meet there."""
    yield
    if (torch := sys.modules.get("torch")) and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "RANK"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips (``train/``, ``val/``, ``photos/``, ``masks/``, ``sample/``); skips where it is not."""
    folder = Path(os.environ.get("LDM_VIDEO_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs real clips: no folder {folder} (set LDM_VIDEO_DATA)")
    return folder


def _write_video(path: Path, frames: int = 12, size: tuple[int, int] = (96, 128)) -> Path:
    """Write H.264 at 25 fps, ``size`` (height, width): a gradient whose stripes move 2 pixels a frame to the left."""
    height, width = size
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "12", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            wave = 127.5 + 100 * np.sin((x + 2 * index) / 9)
            pixels = np.stack([wave, 255 * y / (height - 1), 255 - wave], axis=-1).astype(np.uint8)  # h w c
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """``write_video(path, frames=12, size=(96, 128)) -> path``: a synthetic clip of any length and size."""
    return _write_video


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the smallest model, for all to read: who changes it takes a copy."""
    from tests.cli_support import write_tiny_bundle  # only now: it loads torch and diffusers

    return write_tiny_bundle(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def tiny_video(tmp_path: Path) -> Path:
    """The only file of its folder: 12 frames of 96x128 (height x width) at 25 fps, H.264, no audio."""
    return _write_video(tmp_path / "clips" / "tiny.mp4")
