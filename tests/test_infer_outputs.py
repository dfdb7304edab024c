"""Outputs of ``infer.py`` that are there already, and whose they are: nothing is replaced unless it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import infer
from tests.cli_support import call, files_below, read_pixels, write_tiny_bundle
from tests.film_support import FRAMES, SEGMENTS, SIZE, finished_parts, parts_folder
from tests.video_io_support import pan, write_clip

Restore = Callable[..., int]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    return write_tiny_bundle(place / "tiny")


@pytest.fixture(scope="module")
def clip(place: Path) -> Path:
    return write_clip(place / "sd.mkv", pan(FRAMES, *SIZE), codec="ffv1")


@pytest.fixture
def restore(bundle: Path, clip: Path, tmp_path: Path) -> Restore:
    """``restore("hd.mkv", *options)``: infer.py on the clip of several segments; returns the exit code."""

    def run(name: str, *options: object, source: Path = clip, segments: tuple[str, ...] = SEGMENTS) -> int:
        given = ("--input", source, "--output", tmp_path / name, "--model", bundle, "--scale", 1, "--codec", "ffv1")
        return call(infer, *given, *segments, *options)

    return run


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A clip of one segment, of which the output could be made at once."""
    (tmp_path / "archive").mkdir()
    return write_clip(tmp_path / "archive" / "hd.mkv", pan(3, *SIZE), codec="ffv1")


def left_while_joining(restore: Restore, output: Path) -> None:
    """A journal as a process leaves it that is killed once the output has its name; the output says what it is."""
    assert restore(output.name, "--share", "1/2") == 0
    assert finished_parts(output)
    (parts_folder(output) / "joining").touch()
    output.write_text("finished")


# Whose work is kept.


@pytest.mark.parametrize("command", ["another clip", "another seed"])
def test_an_output_that_another_command_was_putting_together_is_not_replaced(
    restore: Restore, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    output = tmp_path / "hd.mkv"
    left_while_joining(restore, output)
    before = files_below(tmp_path)
    capsys.readouterr()
    assert restore("hd.mkv", source=other) == 2 if command == "another clip" else restore("hd.mkv", "--seed", 9) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {output} exists already, and what is kept in {parts_folder(output)} is another")
    assert output.read_text() == "finished"
    assert files_below(tmp_path) == before


def test_the_same_command_ends_what_it_was_putting_together(restore: Restore, tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    left_while_joining(restore, output)
    assert restore("hd.mkv") == 0
    assert len(read_pixels(output)) == FRAMES
    assert files_below(tmp_path) == {"hd.mkv"}


def test_of_an_archive_it_is_skipped(restore: Restore, other: Path, tmp_path: Path) -> None:
    hd = tmp_path / "archive_hd"
    hd.mkdir()
    left_while_joining(lambda name, *options: restore(f"archive_hd/{name}", *options), hd / "hd.mkv")
    assert restore("archive_hd", source=other.parent) == 0
    assert (hd / "hd.mkv").read_text() == "finished"
    assert json.loads((hd / "report.json").read_text())["clips"]["hd.mkv"]["state"] == "skipped"
