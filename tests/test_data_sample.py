"""The demo's clip: what it is made of, and what cannot be encoded is refused before anything is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data import make_sample
from data.cache import read_video
from tests.cli_support import call


@pytest.mark.parametrize("size", [(228, 240), (240, 228), (238, 240)])
def test_sides_that_cannot_be_encoded(
    size: tuple[int, int], write_video: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quarter of 228 is odd, and 4:2:0 halves it."""
    source = write_video(tmp_path / "clean.mp4", 2, size)
    assert call(make_sample, source, tmp_path / "made") == 2
    error = f"error: {source} is {size[1]}x{size[0]}; both sides must be multiples of 8\n"
    assert capsys.readouterr().err.endswith(error)
    assert not (tmp_path / "made").exists()


def test_sides_that_can(write_video: Callable[..., Path], tmp_path: Path) -> None:
    source = write_video(tmp_path / "clean.mp4", 2, (200, 232))
    assert call(make_sample, source, tmp_path / "made") == 0
    assert read_video(tmp_path / "made" / "city_sd.mp4").shape == (2, 50, 58, 3)
