"""``--dry-run`` refuses what the run would refuse, in the same line, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli_support import files_below
from tests.film_support import restore_to, write_one_segment


@pytest.fixture
def restore(bundle: Path, tmp_path: Path) -> Callable[..., int]:
    (tmp_path / "archive").mkdir()
    return restore_to(tmp_path, write_one_segment(tmp_path), bundle)


@pytest.mark.parametrize(
    ("output", "options"),
    [
        ("hd.webm", ("--codec", "libx264")),
        ("hd.txt", ("--codec", "libx264")),
        ("hd.mp3", ("--codec", "libx264")),
        ("hd.yuv", ("--codec", "libx264")),
        ("hd.mov", ("--codec", "libsvtav1")),
    ],
)
def test_an_output_that_cannot_be_is_refused_as_by_the_run(
    restore: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    output: str,
    options: tuple[str, ...],
) -> None:
    before = files_below(tmp_path)
    assert restore(f"new/{output}", *options, "--dry-run") == 2
    planned = capsys.readouterr().err.splitlines()
    assert len(planned) == 1 and Path(output).suffix in planned[0]
    assert files_below(tmp_path) == before
    assert restore(f"new/{output}", *options) == 2
    assert capsys.readouterr().err.splitlines() == planned


@pytest.mark.parametrize("output", ["new/hd.mp4", "new/frames"])
def test_an_output_that_can_be_is_not_made(restore: Callable[..., int], tmp_path: Path, output: str) -> None:
    before = files_below(tmp_path)
    assert restore(output, "--codec", "libx264", "--dry-run") == 0
    assert files_below(tmp_path) == before
