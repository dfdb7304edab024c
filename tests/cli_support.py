"""What the tests of the two command lines share: a tiny model, and scripts run here or in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ldm_video.config import build, load_config
from ldm_video.core.errors import run_cli
from ldm_video.models.bundle import save_bundle
from ldm_video.models.video_model import VideoModel
from ldm_video.video_io import FrameReader

ROOT = Path(__file__).resolve().parents[1]
TINY_MODEL = ROOT / "tests" / "configs" / "tiny_model.yaml"


def tiny_model(seed: int = 0) -> VideoModel:
    """The shipped architecture with the smallest widths; no weight is zero, so that every part has a say."""
    torch.manual_seed(seed)
    model = build(load_config(TINY_MODEL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


def write_tiny_bundle(folder: Path) -> Path:
    save_bundle(tiny_model(), folder)
    return folder


def call(script: ModuleType, *arguments: object, folder: Path | None = None) -> int:
    """Run a script's ``main`` in this process, in ``folder``, as its last lines would; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch, chdir(folder or Path.cwd()):
        patch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        try:
            run_cli(script.main)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def spawn(
    script: str, *arguments: object, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python script.py ...`` as a user does; ``before`` runs in the new process (limits)."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=before, env=environment, check=False)


def read_pixels(path: Path) -> np.ndarray:
    """All frames of a video, folder or picture, ``t h w 3`` in [0, 255], not rounded."""
    with FrameReader(path, deinterlace="off") as reader:
        return np.stack([(frame.pixels.permute(1, 2, 0).numpy() + 1) * 127.5 for frame in reader])


def files_below(folder: Path) -> set[str]:
    """Every file and folder below ``folder``, hidden ones and leftovers included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
