"""One clip, several processes: the frames of one, whoever comes, dies or comes late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from torch import Tensor

import infer
from ldm_video.pipeline.parts import Parts
from tests.cli_support import ROOT, call, write_tiny_bundle
from tests.film_support import FRAMES, SEGMENTS, SIZE, Runs, finished_parts, parts_folder, same_frames, wait_until
from tests.video_io_support import pan, write_clip

LOSSLESS = ("--codec", "ffv1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("film")
    clip = write_clip(place / "sd.mp4", pan(FRAMES, *SIZE))
    return Runs(clip, write_tiny_bundle(place / "tiny"), place)


@pytest.fixture(scope="module")
def alone(runs: Runs) -> Path:
    """What one process gives."""
    output = runs.folder / "alone.mkv"
    assert runs.run(output, *LOSSLESS) == 0
    return output


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_give_the_frames_of_one(runs: Runs, alone: Path, tmp_path: Path, count: int) -> None:
    output = tmp_path / "hd.mkv"
    environments = [{"RANK": str(i), "WORLD_SIZE": str(count), "LOCAL_RANK": str(i)} for i in range(count)]
    processes = [runs.start(output, *LOSSLESS, environment=environment) for environment in environments]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count, runs.lines
    assert same_frames(output, alone)
    assert not parts_folder(output).exists()
    assert sum(line.startswith(f"{output}: ") for line in runs.lines) == 1  # one of them has put it together


@pytest.mark.parametrize("moment", ["before", "while"])
def test_the_last_cross_fade_may_be_another_ones(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    """It writes the same, puts the output together and removes the folder, all while this one is still at it."""
    write, output = Parts._write, tmp_path / "hd.mkv"

    def overtaken(parts: Parts, path: Path, name: str, canvases: Sequence[Tensor], times: Sequence[Fraction]) -> None:
        def still(canvases: Sequence[Tensor]) -> Iterator[Tensor]:
            for canvas in canvases:
                yield canvas
                parts.journal.remove()

        if "fade" not in path.name or parts.unfinished():
            return write(parts, path, name, canvases, times)
        if moment == "before":
            parts.journal.remove()
            return write(parts, path, name, canvases, times)
        return write(parts, path, name, still(canvases), times)  # type: ignore[arg-type]

    monkeypatch.setattr(Parts, "_write", overtaken)
    given = ["--input", runs.clip, "--output", output, "--model", runs.bundle, "--scale", 2, *SEGMENTS, *LOSSLESS]
    assert call(infer, *given) == 0
    assert "another process has put the output together" in capsys.readouterr().out
    assert not parts_folder(output).exists()


def test_a_worker_that_dies_is_reported_and_a_rerun_does_its_segments(runs: Runs, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    victim = runs.start(output, *LOSSLESS, "--share", "2/2")
    wait_until(lambda: len(finished_parts(output)) >= 1, victim)
    victim.kill()
    victim.join()
    assert runs.run(output, *LOSSLESS, "--share", "1/2") == 0
    (report,) = (line for line in runs.lines if line.startswith("share 1/2 is done"))
    assert "2/2 ended before its time" in report
    assert not output.exists()
    assert runs.run(output, *LOSSLESS) == 0  # without shares: all that is left
    assert same_frames(output, alone)


def test_shares_one_after_the_other(runs: Runs, alone: Path, tmp_path: Path) -> None:
    """As tasks of a queue that has one free place; the one with nothing to do ends it."""
    output = tmp_path / "hd.mkv"
    for share in range(1, 8):
        assert not output.exists()
        assert runs.run(output, *LOSSLESS, "--share", f"{share}/7") == 0, runs.lines
    assert same_frames(output, alone)


def test_a_clip_of_one_segment_is_the_first_ones(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    assert runs.run(output, *LOSSLESS, "--share", "2/2", "segment=64") == 0
    assert runs.lines == ["share 2/2 has nothing to do: the clip is one segment"]
    assert runs.run(output, *LOSSLESS, "--share", "1/2", "segment=64") == 0
    assert output.exists()


@pytest.mark.slow
def test_torchrun(runs: Runs, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ROOT / "infer.py",
        "--input", runs.clip, "--output", output, "--model", runs.bundle, "--scale", 2, *SEGMENTS, *LOSSLESS,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert same_frames(output, alone)


def test_a_bad_share_is_one_line(runs: Runs, tmp_path: Path) -> None:
    assert runs.run(tmp_path / "hd.mkv", "--share", "9/8") == 2
    (line,) = runs.lines
    assert line.startswith("error: --share 9/8")


def test_a_signal_to_one_leaves_the_others(runs: Runs, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    first = runs.start(output, *LOSSLESS, "--share", "1/2")
    wait_until(lambda: len(finished_parts(output)) >= 1, first)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGTERM)
    first.join()
    assert first.exitcode == 143
    assert runs.run(output, *LOSSLESS, "--share", "2/2") == 0
    assert runs.run(output, *LOSSLESS, "--share", "1/2") == 0
    assert same_frames(output, alone)
