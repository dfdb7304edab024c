"""Hundreds of damaged and odd inputs: each ends with a whole output or with one line, never otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import cv2
import pytest

from tests.cli_support import files_below, spawn, write_tiny_bundle
from tests.fuzz_cases import Case, clip_cases
from tests.fuzz_cases_beside import beside_cases
from tests.fuzz_support import Crashed, Ended, Runner, decodable

CASES = [*clip_cases(), *beside_cases()]
OUTPUTS = ("hd.mp4", "hd.mkv", "hd", "hd.mov")
FILM = ("segment=4", "--window", "3", "--overlap", "1", "chain=2")  # the way of long clips: parts, journal, join
REAL = ("mpeg2.ts, 10 % noise", "noise in clip.mp4", "png of 60000")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("runner"))
    yield runner
    runner.close()


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 200


@pytest.mark.parametrize(("number", "case"), enumerate(CASES), ids=[f"{case.kind}: {case.name}" for case in CASES])
def test_ends_with_output_or_one_line(number: int, case: Case, bundle: Path, runner: Runner, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    source, *options = case.make(given)
    output = tmp_path / "made" / (case.output or OUTPUTS[number % len(OUTPUTS)])
    film = FILM if number % 3 == 1 else ()
    try:
        ended = runner.run(
            "--input", source, "--output", output, "--model", bundle, "--scale", 2, "preset=ultrafast", *film, *options
        )
    except Crashed as crash:
        pytest.fail(str(crash))
    check(case, ended, Path(str(source)), output)


def check(case: Case, ended: Ended, source: Path, output: Path) -> None:
    """Output or one line; and which of them, where that is known."""
    left = files_below(output.parent) if output.parent.exists() else set()
    frames = decodable(source) if case.frames is None else case.frames
    lines = ended.complaints.splitlines()
    if ended.code == 0:
        written = count_strictly(output)
        assert frames != 0, f"{written} frames from a source that holds none"
        assert written == frames or frames == -1, ended.complaints
        assert all(line.startswith("warning: ") for line in lines), ended.complaints
        assert output.name in ended.printed
        assert left == {output.name, *(f"{output.name}/{i:06d}.png" for i in range(written) if output.is_dir())}
    else:
        assert (ended.code, len(lines), ended.printed) == (2, 1, ""), ended.complaints
        assert lines[0].startswith("error: ")
        assert frames <= 0, f"refused though it holds {frames} frames: {lines[0]}"
        assert not left
    assert case.says in ended.complaints


def count_strictly(output: Path) -> int:
    """Frames of an output without a fault, at times that increase."""
    if output.is_dir():
        pictures = sorted(output.iterdir())
        assert all(cv2.imread(str(picture)) is not None for picture in pictures)
        return len(pictures)
    times = []
    with av.open(str(output)) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode"}
        for frame in container.decode(stream):
            assert not frame.is_corrupt
            times.append(frame.pts)
    assert all(a < b for a, b in pairwise(times)), times
    return len(times)


@pytest.mark.parametrize("name", REAL)
def test_in_a_process_of_its_own(name: str, bundle: Path, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    (tmp_path / "given").mkdir()
    source, *options = case.make(tmp_path / "given")
    output = tmp_path / "made" / "hd.mp4"
    done = spawn("infer.py", "--input", source, "--output", output, "--model", bundle, "--scale", 2, *options)
    check(case, Ended(done.returncode, done.stdout, done.stderr), Path(str(source)), output)
