"""``infer.py`` that is killed, interrupted, out of disk or cut off: the work is kept and the result the same."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_video.video_io import probe
from tests.cli_support import files_below, write_tiny_bundle
from tests.film_support import FRAMES, SIZE, Runs, finished_parts, parts_folder, same_frames, wait_until
from tests.video_io_support import pan, write_clip

LOSSLESS = ("--codec", "ffv1")
KILLS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("film")


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    return write_tiny_bundle(place / "tiny")


@pytest.fixture(scope="module")
def clip(place: Path) -> Path:
    return write_clip(place / "sd.mp4", pan(FRAMES, *SIZE))


@pytest.fixture(scope="module")
def whole(bundle: Path, clip: Path, place: Path) -> Callable[..., Path]:
    """``whole(suffix, *options)``: what an uninterrupted run gives; made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(suffix: str, *options: str) -> Path:
        if (suffix, *options) not in made:
            output = place / f"whole{len(made)}{suffix}"
            runs = Runs(clip, bundle, place)
            assert runs.run(output, *options) == 0, runs.lines
            assert probe(output).frames in (FRAMES, None)
            made[suffix, *options] = output
        return made[suffix, *options]

    return run


@pytest.fixture
def runs(clip: Path, bundle: Path, tmp_path: Path) -> Runs:
    return Runs(clip, bundle, tmp_path)


def killed_after(runs: Runs, output: Path, parts: int, *options: str, by: int = signal.SIGKILL) -> int:
    """Start, send the signal once ``parts`` parts are finished; returns the exit code."""
    process = runs.start(output, *options)
    wait_until(lambda: len(finished_parts(output)) >= parts, process)
    assert process.pid is not None
    os.kill(process.pid, by)
    process.join()
    assert not output.exists()
    return process.exitcode or 0


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mkv", (*LOSSLESS, "join=continue", "--compare")),
        (".mp4", ("--box", "4,4,20,10")),
        ("", ()),
    ],
    ids=["ffv1-continue-compare", "libx264-fade", "folder"],
)
def test_a_killed_run_goes_on_and_ends_in_the_same_frames(
    runs: Runs, whole: Callable[..., Path], tmp_path: Path, suffix: str, options: tuple[str, ...]
) -> None:
    output = tmp_path / f"hd{suffix}"
    assert killed_after(runs, output, 3, *options) == -signal.SIGKILL
    kept = len(finished_parts(output))
    assert runs.run(output, *options) == 0, runs.lines
    going_on, result, *compare = runs.lines
    assert going_on.startswith("going on: ") and f"of {FRAMES} frames are kept in {parts_folder(output)}" in going_on
    assert int(result.split(": ")[1].split()[0]) < FRAMES  # of this run
    assert kept >= 3
    expected = whole(suffix, *options)
    assert same_frames(output, expected)
    if compare:
        assert same_frames(tmp_path / "hd_compare.mkv", expected.with_name(f"{expected.stem}_compare.mkv"))
    assert not parts_folder(output).exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [(".mkv", *LOSSLESS, "join=continue"), (".mp4",)], ids=["ffv1", "libx264"])
def test_kills_at_random_moments(
    runs: Runs, whole: Callable[..., Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """From the first line of Python to the last rename; a run that ends is compared and begun anew."""
    suffix, *flags = options
    output, expected = tmp_path / f"hd{suffix}", whole(*options)
    started = time.monotonic()
    assert runs.run(output, "--overwrite", *flags) == 0
    typical = time.monotonic() - started
    moments = random.Random(7)
    kills = ends = 0
    while kills < KILLS // 2:
        process = runs.start(output, "--overwrite", *flags)
        process.join(moments.uniform(0, typical))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0, runs.lines
            assert same_frames(output, expected)
            ends += 1
    assert runs.run(output, "--overwrite", *flags) == 0, runs.lines
    assert same_frames(output, expected)
    assert {name for name in files_below(tmp_path) if name != "printed.txt"} == {output.name}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_one_line_and_keeps_the_work(runs: Runs, tmp_path: Path, number: int) -> None:
    output = tmp_path / "hd.mkv"
    assert killed_after(runs, output, 2, *LOSSLESS, by=number) == 128 + number
    (line,) = runs.lines
    assert line.startswith("interrupted; ")
    assert f" of {FRAMES} frames are kept in {parts_folder(output)}; the same command resumes" in line
    assert len(finished_parts(output)) >= 2


def test_another_command_begins_anew_and_says_why(runs: Runs, whole: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    killed_after(runs, output, 2, *LOSSLESS, "--seed", "5")
    assert runs.run(output, *LOSSLESS) == 0
    (first, _) = runs.lines
    assert first.endswith("(seed differs): starting over")
    assert same_frames(output, whole(".mkv", *LOSSLESS))


def test_restart_begins_anew(runs: Runs, whole: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    killed_after(runs, output, 2, *LOSSLESS)
    assert runs.run(output, *LOSSLESS, "--restart") == 0
    (result,) = runs.lines
    assert f": {FRAMES} frames " in result
    assert same_frames(output, whole(".mkv", *LOSSLESS))


def test_the_same_command_twice_at_once(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    first = runs.start(output, *LOSSLESS)
    wait_until(lambda: len(finished_parts(output)) >= 1, first)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)
    try:
        assert runs.run(output, *LOSSLESS) == 2
        assert "error: another process is at work on" in runs.lines[-1]
    finally:
        os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0


def test_a_full_disk_keeps_the_work(runs: Runs, whole: Callable[..., Path], tmp_path: Path) -> None:
    """The limit on the size of a file stands for the disk: the parts fit, what is put together does not."""
    output, options = tmp_path / "hd.mkv", LOSSLESS
    largest = whole(".mkv", *options).stat().st_size
    process = runs.start(output, *options)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest // 2,) * 2)
    process.join()
    assert process.exitcode == 2
    (line,) = runs.lines
    assert line.startswith("error: no space left") and f"{FRAMES} of {FRAMES} frames are kept" in line
    assert runs.run(output, *options) == 0
    assert same_frames(output, whole(".mkv", *options))


def test_an_input_that_is_cut_off_midway(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "sd.mkv"
    write_clip(source, pan(200, *SIZE), codec="ffv1")  # long: much of it is still to be read
    runs, output = Runs(source, bundle, tmp_path), tmp_path / "hd.mkv"
    process = runs.start(output, *LOSSLESS)
    wait_until(lambda: len(finished_parts(output)) >= 1, process)
    os.truncate(source, source.stat().st_size // 3)
    process.join()
    assert process.exitcode == 2, runs.lines
    (line,) = runs.lines
    assert line.startswith(f"error: {source} ended at frame ") and "frames are kept in" in line
