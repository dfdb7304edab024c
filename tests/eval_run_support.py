"""What the tests of scoring share: clips of noise, and the command."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval import run as runner
from ldm_video.core.errors import run_cli

SIZE = (48, 64)


def write_clip(folder: Path, frames: int = 4, seed: int = 0, size: tuple[int, int] = SIZE, add: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(frames):
        picture = np.clip(rng.integers(40, 200, (*size, 3)) + add, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index:05d}.png"), picture)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["eval.run", *map(str, arguments), "--jobs", "1"])
    try:
        run_cli(runner.main)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def write_pairs(folder: Path) -> tuple[Path, Path]:
    """Two clips and their references: the folders ``pred`` and ``ref``."""
    for name, seed, add in (("a", 0, 10), ("b", 1, 20)):
        write_clip(folder / "ref" / name, seed=seed)
        write_clip(folder / "pred" / name, seed=seed, add=add)
    return folder / "pred", folder / "ref"
