"""What the tests of bad input share: a small clip, white masks, and a run that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import infer
from tests.cli_support import call
from tests.once_support import once
from tests.video_io_support import pan, write_clip

SIZE = (32, 48)
FRAMES = 9


def white(folder: Path, count: int, suffix: str = ".mp4", codec: str = "libx264") -> Path:
    return write_clip(folder / f"mask{count}{suffix}", [np.ones((*SIZE, 3))] * count, codec=codec)


@once
def small_clip(factory: pytest.TempPathFactory) -> Path:
    """Made once, for all to read."""
    return write_clip(factory.mktemp("clip") / "sd.mp4", pan(FRAMES, *SIZE))


def refusal(bundle: Path, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(*options)``: infer.py ends with code 2, one line and no new file; returns the line.

    ``capfd`` sees what the C libraries print too.
    """

    def run(
        *options: object,
        source: Path = clip,
        output: Path = tmp_path / "hd.mp4",
        model: Path = bundle,
    ) -> str:
        before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
        capfd.readouterr()
        code = call(infer, "--input", source, "--output", output, "--model", model, *options)
        printed = capfd.readouterr()
        assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
        assert code == 2, printed.err
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        return line

    return run
