"""Hundreds of damaged and odd inputs: each ends with a whole output or with one line, never otherwise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import cv2
import pytest

from ldm_video.video_io import FrameReader
from tests.cli_support import files_below, spawn
from tests.fuzz_cases import Case, clip_cases
from tests.fuzz_cases_beside import beside_cases
from tests.fuzz_support import FORMATS, FRAMES, RATE, Crashed, Ended, Runner, decodable, encode, flip_share, whole
from tests.video_io_support import packet_bytes, packet_times

CASES = [*clip_cases(), *beside_cases()]
OUTPUTS = ("hd.mp4", "hd.mkv", "hd", "hd.mov")
FILM = ("segment=4", "--window", "3", "--overlap", "1", "chain=2")  # the way of long clips: parts, journal, join
REAL = ("a frame of noise", "j.ts of mpeg2video becomes larger")


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
    film = FILM if number % 5 == 1 else ()
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


# What damage must not do.


def restored(source: Path, output: Path, bundle: Path, runner: Runner) -> Ended:
    ended = runner.run("--input", source, "--output", output, "--model", bundle, "--scale", 2, "preset=ultrafast")
    assert ended.code == 0, ended.complaints
    return ended


def test_one_wrong_time_stamp_is_one_wrong_time_stamp(tmp_path: Path) -> None:
    """A bit of one block's time, set: the frame would come 16 seconds late and all that follow after it."""
    data = bytearray(whole("ffv1.mkv"))
    data[data.index(b"\x81" + (600).to_bytes(2, "big")) + 1] ^= 0x40
    (tmp_path / "clip.mkv").write_bytes(data)
    with FrameReader(tmp_path / "clip.mkv") as reader:
        times = [frame.pts_seconds for frame in reader]
    assert times == [i / RATE for i in range(FRAMES)]
    assert "1 frames had time stamps out of order" in reader.warnings[0]


def test_recordings_behind_one_another_go_on_in_time_with_their_sound(
    bundle: Path, runner: Runner, tmp_path: Path
) -> None:
    late = encode(tmp_path / "late.ts", FORMATS["h264.ts"], container_options={"output_ts_offset": "100"})
    both = tmp_path / "both.ts"
    both.write_bytes(late.read_bytes() + whole("h264.ts"))
    restored(both, tmp_path / "hd.mkv", bundle, runner)
    pictures, sound = packet_times(tmp_path / "hd.mkv"), packet_bytes(tmp_path / "hd.mkv", "audio")
    assert len(pictures) == decodable(both) == 2 * FRAMES
    assert float(pictures[-1] - pictures[0]) == pytest.approx(float((2 * FRAMES - 1) / RATE), abs=0.1)
    assert len(sound) == 2 * len(packet_bytes(late, "audio"))
    assert float(sound[-1][0] - pictures[-1]) == pytest.approx(float(1 / RATE), abs=0.15)


def test_sound_whose_channels_have_no_names_is_kept(bundle: Path, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "camera.avi").write_bytes(whole("mjpeg.avi"))  # as AVI always is
    ended = restored(tmp_path / "camera.avi", tmp_path / "hd.mp4", bundle, runner)
    assert ended.complaints == ""
    assert packet_bytes(tmp_path / "hd.mp4", "audio")


@pytest.mark.parametrize("name", ["h264.ts", "mpeg2.ts"])
def test_patched_frames_are_counted(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.write_bytes(flip_share(0.003)(whole(name), random.Random(0)))
    with FrameReader(source) as reader:
        frames = sum(1 for _ in reader)
    with av.open(str(source)) as container:
        container.streams.video[0].thread_type = "NONE"
        patched = sum(frame.is_corrupt for frame in container.decode(video=0))
    assert (frames, patched > 0) == (FRAMES, True)
    assert reader.warnings == [f"{source}: decoded {FRAMES} frames; {patched} of them are damaged and patched"]


@pytest.mark.parametrize("name", REAL)
def test_in_a_process_of_its_own(name: str, bundle: Path, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    (tmp_path / "given").mkdir()
    source, *options = case.make(tmp_path / "given")
    output = tmp_path / "made" / "hd.mp4"
    done = spawn("infer.py", "--input", source, "--output", output, "--model", bundle, "--scale", 2, *options)
    check(case, Ended(done.returncode, done.stdout, done.stderr), Path(str(source)), output)
