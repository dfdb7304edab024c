"""data.prepare: films with known shots go in; clips, reasons and a report come out, whatever stops the run."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tarfile
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data.cache import read_video
from data.clips import ClipDataset
from data.prepare import main, prepare
from data.prepare_parts.encode import clip_key
from data.prepare_parts.options import PrepareOptions, parse_options
from data.prepare_parts.pieces import find_pieces
from data.prepare_parts.survey import Survey, bars, sharpness, survey
from data.shards import ShardDataset
from eval.bench.data_throughput import as_shards, measure
from ldm_video.core.errors import UserError, run_cli

ROOT = Path(__file__).parents[1]
SIZE = (120, 160)
SMALL = PrepareOptions(min_frames=8, max_frames=40, min_side=64)


def shot(seed: int, frames: int = 20, size: tuple[int, int] = SIZE, step: int = 1) -> np.ndarray:
    """``t h w c``: a picture with power in every octave that moves ``step`` pixels a frame."""
    rng = np.random.default_rng(seed)
    height, width = size[0], size[1] + step * frames
    picture = np.zeros((height, width, 3))
    for side in (2, 4, 8, 16, 32):
        coarse = rng.normal(0, 1, (height // side + 1, width // side + 1, 3))
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    tint = rng.uniform(60, 190, 3)
    picture = (picture * 25 + tint).clip(0, 255).astype(np.uint8)
    return np.stack([picture[:, step * i : step * i + size[1]] for i in range(frames)])


def write_film(path: Path, frames: np.ndarray, rate: Fraction = Fraction(25)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "8", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def luma_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of ``h w c`` RGB frames: the colours of single pixels are lost to 4:2:0 whatever the quality."""
    return cv2.PSNR(*(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (a, b)))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """The command line, in this process: a new one takes seconds to load."""
    monkeypatch.setattr(sys, "argv", ["data.prepare", *map(str, arguments)])
    run_cli(main)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``reel.mp4``: two shots, black, a still, a blurred shot, four frames, a long shot. ``wide/wide.mp4``: bars."""
    folder = tmp_path_factory.mktemp("films")
    black, still = np.zeros((10, *SIZE, 3), np.uint8), np.repeat(shot(3, 1), 12, 0)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in shot(4, 14)])
    reel = [shot(1), shot(2, 16), black, still, blurred, shot(5, 4), shot(6, 60)]
    write_film(folder / "reel.mp4", np.concatenate(reel))
    boxed = np.zeros((18, 160, 200, 3), np.uint8)
    boxed[:, 20:140, 16:176] = shot(7, 18)
    write_film(folder / "wide" / "wide.mp4", boxed, Fraction(30000, 1001))
    (folder / "wide" / "wide.txt").write_text("a wide film\n")
    return folder


@pytest.fixture(scope="module")
def clips(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    prepare(films, out, False, SMALL)
    return out


def test_shots_are_cut_and_each_piece_kept_or_dropped_for_its_reason(clips: Path) -> None:
    reel = json.loads((clips / "report.json").read_text())["sources"]["reel.mp4"]
    kept = [(clip["start"], clip["stop"]) for clip in reel["clips"]]
    assert kept == [(0, 20), (20, 36), (76, 106), (106, 136)]  # the long shot in two equal parts
    dropped = [(piece["start"], piece["stop"], piece["reason"].split()[0]) for piece in reel["dropped"]]
    assert dropped == [(36, 46, "black"), (46, 58, "static"), (58, 72, "blurred"), (72, 76, "short")]
    assert reel["frames"] == 136


def test_clips_hold_the_frames_of_the_film(films: Path, clips: Path) -> None:
    film = read_video(films / "reel.mp4")
    for number, (start, stop) in enumerate([(0, 20), (20, 36), (76, 106), (106, 136)]):
        clip = read_video(clips / f"{clip_key('reel.mp4', number)}.mp4")
        assert len(clip) == stop - start
        assert min(map(luma_psnr, clip, film[start:stop])) > 40


def test_bars_are_cropped_and_facts_are_kept(films: Path, clips: Path) -> None:
    key = clip_key("wide/wide.mp4", 0)
    fact = json.loads((clips / f"{key}.json").read_text())
    assert (fact["source"], fact["rate"], fact["cropped"]) == ("wide/wide.mp4", "30000/1001", True)
    # Inside the picture, by no more than the rim that is taken off with a bar.
    assert 20 <= fact["top"] <= 24 and 16 <= fact["left"] <= 20
    assert 136 <= fact["top"] + fact["height"] <= 140 and 172 <= fact["left"] + fact["width"] <= 176
    clip = read_video(clips / f"{key}.mp4")
    assert clip.shape == (18, fact["height"], fact["width"], 3)
    rows = slice(fact["top"], fact["top"] + fact["height"])
    film = read_video(films / "wide" / "wide.mp4")[:, rows, fact["left"] : fact["left"] + fact["width"]]
    assert min(map(luma_psnr, clip, film)) > 40
    with av.open(str(clips / f"{key}.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
    assert keys == [index % 12 == 0 for index in range(18)]


def test_captions_go_with_every_clip_into_training(clips: Path, tmp_path: Path) -> None:
    items = ClipDataset(clips, frames=3, size=64, cache=tmp_path)
    captions = {item["name"].split("-")[0]: item["caption"] for item in map(items.__getitem__, range(16))}
    assert captions == {"reel": "", "wide_wide": "a wide film"}


def test_shards_hold_the_same_clips_and_are_the_same_bytes_every_time(films: Path, clips: Path, tmp_path: Path) -> None:
    options = PrepareOptions(min_frames=8, max_frames=40, min_side=64, shard_clips=2)
    report = prepare(films, tmp_path / "a", True, options)
    prepare(films, tmp_path / "b", True, options)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["report.json", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names[1:])
    for clip in report.clips:
        with tarfile.open(tmp_path / "a" / clip["shard"]) as tar:
            member = tar.extractfile(f"{clip['key']}.mp4")
            assert member is not None
            assert member.read() == (clips / f"{clip['key']}.mp4").read_bytes()
    items = ShardDataset(tmp_path / "a", frames=3, size=64, cache=tmp_path / "cache")
    assert len(items.samples) == 5
    assert {item["caption"] for item in map(items.__getitem__, range(5))} == {"", "a wide film"}


def test_bad_files_are_named_and_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_film(tmp_path / "src" / "good.mp4", shot(1, 16))
    (tmp_path / "src" / "a[").mkdir()
    (tmp_path / "src" / "a[" / "x].mp4").write_bytes(b"no video")  # its path reads as markup
    (tmp_path / "src" / "junk.mp4").write_bytes(b"no video" * 50)
    (tmp_path / "src" / "nothing.mkv").write_bytes(b"")
    whole = write_film(tmp_path / "half.ts", shot(2, 40)).read_bytes()
    (tmp_path / "src" / "half.ts").write_bytes(whole[: len(whole) // 2])
    with av.open(str(tmp_path / "src" / "zero.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 120, 160, "yuv420p"
        container.start_encoding()
    run(monkeypatch, tmp_path / "src", tmp_path / "out", "min_frames=8", "min_side=64")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["totals"]["bad_files"] == ["a[/x].mp4", "junk.mp4", "nothing.mkv", "zero.mp4"]
    printed = capsys.readouterr().out
    assert all(f"bad file {name}" in printed for name in report["totals"]["bad_files"])
    assert len(report["sources"]["good.mp4"]["clips"]) == 1
    assert 8 <= report["sources"]["half.ts"]["clips"][0]["stop"] < 40  # what is there of it is used


def test_a_killed_run_goes_on_to_the_same_result(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the first source's clips are staged; then the same command again, and once more for nothing."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = [films, out, "--shards", "min_frames=8", "max_frames=40", "min_side=64", "shard_clips=2"]
    program = [sys.executable, "-m", "data.prepare", *map(str, arguments)]
    process = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob(".staging/*-0001.mp4")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(out.glob("shard-000002.tar"))
    run(monkeypatch, *arguments)
    prepare(films, whole, True, PrepareOptions(8, 40, 64, shard_clips=2))
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert all(path.read_bytes() == (out / path.name).read_bytes() for path in whole.iterdir())
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    run(monkeypatch, *arguments)
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}


def test_a_kill_between_a_shard_and_its_report_doubles_no_clip(films: Path, tmp_path: Path) -> None:
    """The state just after a shard was renamed: it is there, its clips are staged, and the report knows nothing."""
    out, options = tmp_path / "out", PrepareOptions(8, 40, 64, shard_clips=2)
    prepare(films, tmp_path / "whole", True, options)
    prepare(films, out, False, options)
    report = json.loads((out / "report.json").read_text())
    (out / ".staging").mkdir()
    for path in [*out.glob("*.mp4"), *out.glob("*-????.json"), *out.glob("*.txt")]:
        path.rename(out / ".staging" / path.name)
    report["options"]["shards"] = True
    (out / "report.json").write_text(json.dumps(report))
    (out / "shard-000000.tar").write_bytes((tmp_path / "whole" / "shard-000000.tar").read_bytes())
    prepare(films, out, True, options)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_kill_while_packed_clips_are_deleted_stops_no_later_run(films: Path, tmp_path: Path) -> None:
    """The state just after the report was saved: what is packed is staged still, and so is a piece of nothing."""
    options = PrepareOptions(8, 40, 64, shard_clips=2)
    prepare(films, tmp_path, True, options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / ".staging").mkdir()
    for name in (f"{clip_key('reel.mp4', 0)}.mp4", f"{clip_key('reel.mp4', 0)}.json", "gone-000000-0000.mp4"):
        (tmp_path / ".staging" / name).write_bytes(b"of a run that was killed")
    prepare(films, tmp_path, True, options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow  # each process loads torch anew
def test_two_jobs_give_what_one_gives(films: Path, clips: Path, tmp_path: Path) -> None:
    prepare(films, tmp_path, False, PrepareOptions(8, 40, 64, jobs=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in clips.iterdir())
    assert all(path.read_bytes() == (clips / path.name).read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere", "{tmp}/out"], "nowhere is not a folder"),
        (["{tmp}", "{tmp}/out"], "lies in SRC"),
        (["{tmp}/empty", "{tmp}/out"], "there is no video"),
        (["{films}", "{tmp}/out", "crf=99"], "crf=99"),
        (["{films}", "{tmp}/out", "blured=1"], "blured"),
        (["{films}", "{tmp}/out", "crf=low"], "low"),
        (["{films}", "{tmp}/out", "shards"], "not key=value"),
        (["{films}", "{out}", "crf=13"], "begun with"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, films: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"tmp": tmp_path, "films": films, "out": clips}
    source, out, *rest = (text.format(**places) for text in arguments)
    with pytest.raises(UserError, match=message) as caught:
        prepare(Path(source), Path(out), False, parse_options(["min_frames=8", "max_frames=40", *rest]))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_program_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path / "nowhere", tmp_path / "out")
    message = f"error: SRC {tmp_path}/nowhere is not a folder; give a folder of videos"
    assert capsys.readouterr().err.splitlines() == [message]


def test_a_full_disk_stops_the_run_and_loses_nothing(films: Path, tmp_path: Path) -> None:
    """No file may grow beyond 4 kB, as on a full disk: no source is called bad, and no half clip stays."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match="no space left"):
            prepare(films, tmp_path, False, SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert prepare(films, tmp_path, False, SMALL).totals()["bad_files"] == []


def test_sharpness_falls_with_blur_and_enlargement_whatever_the_contrast() -> None:
    grey = cv2.cvtColor(shot(11, 1, (256, 256))[0], cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA)
    for contrast in (1.0, 0.4):
        sharp = sharpness((grey * contrast).astype(np.uint8))
        assert sharp > 0.27
        assert sharpness((cv2.GaussianBlur(grey, (0, 0), 2) * contrast).astype(np.uint8)) < 0.1
        enlarged = cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
        assert sharpness((enlarged * contrast).astype(np.uint8)) < 0.1
    assert sharpness(np.full((64, 64), 90, np.uint8)) < 1e-6


def test_bars_are_measured_on_each_side() -> None:
    grey = np.full((90, 120), 100, np.uint8)
    grey[:7] = grey[-12:] = grey[:, :3] = grey[:, -5:] = 16
    assert bars(grey) == (7, 12, 3, 5)
    assert bars(np.full((90, 120), 100, np.uint8)) == (0, 0, 0, 0)
    assert bars(np.zeros((90, 120), np.uint8)) == (0, 0, 0, 0)


def test_pieces_hold_every_frame_once_whatever_the_cuts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        length = int(rng.integers(1, 200))
        seen = Survey((100, 120), Fraction(25), sorted({int(c) for c in rng.integers(1, 200, 5) if c < length}))
        seen.luma = rng.choice([10.0, 200.0], length, p=[0.05, 0.95]).tolist()
        seen.motion = rng.uniform(0, 1, length).tolist()
        looks = -(-length // 8)
        seen.sharpness, seen.bars = rng.uniform(0, 0.3, looks).tolist(), [(0, 0, 0, 0)] * looks
        pieces = find_pieces(seen, SMALL)
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
        assert pieces[-1].stop == length
        for piece in pieces:
            assert 0 < piece.stop - piece.start <= 40 or piece.reason == "black"
            assert not any(piece.start < cut < piece.stop for cut in seen.cuts)


def test_a_frame_is_counted_as_the_reader_counts_it(tmp_path: Path) -> None:
    """B-frames and a stream that starts late: the survey's frame numbers are the reader's."""
    path = write_film(tmp_path / "a.mkv", np.concatenate([shot(1, 13), shot(2, 9)]))
    seen = survey(path, 3.0)
    frames = read_video(path)
    assert len(seen.luma) == len(frames) == 22
    change = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert seen.cuts == [int(change.argmax()) + 1] == [13]


def test_the_benchmark_times_the_same_clips_both_ways(clips: Path, tmp_path: Path) -> None:
    items = ShardDataset(as_shards(clips, tmp_path), frames=3, size=64, cache=tmp_path / "cache")
    rates = measure(items, items=4, rounds=3)
    assert rates.held > rates.decoding > 0
    assert rates.ratio == rates.held / rates.decoding
