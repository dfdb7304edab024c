"""An archive: mirrored names, what is skipped, what fails, the report, and several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from torch.distributed import TCPStore

import infer
from ldm_video.core.errors import UserError
from ldm_video.pipeline.batch import Clip, Report, find_mask, is_archive, list_clips, own_clips
from ldm_video.pipeline.workers import Share, finish
from ldm_video.video_io import probe
from tests.cli_support import ROOT, call, files_below, read_pixels
from tests.film_support import Runs, parts_folder, same_frames, wait_until
from tests.video_io_support import pan, write_clip

SIZE = (32, 48)
LOSSLESS = ("--codec", "ffv1", "--scale", "1", "--box", "4,4,12,12")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three clips of different lengths, two of them in a subfolder."""
    folder = tmp_path / "sd"
    (folder / "sub").mkdir(parents=True)
    write_clip(folder / "a.mp4", pan(3, *SIZE))
    write_clip(folder / "sub" / "a.mkv", pan(6, *SIZE))
    write_clip(folder / "sub" / "b.avi", pan(9, *SIZE), codec="mpeg4")
    return folder


@pytest.fixture
def restore(bundle: Path, archive: Path, tmp_path: Path) -> Callable[..., int]:
    """``restore(*options)``: infer.py from the archive to ``hd``; returns the exit code."""

    def run(*options: object, output: Path = tmp_path / "hd") -> int:
        return call(infer, "--input", archive, "--output", output, "--model", bundle, *options)

    return run


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def states(folder: Path) -> dict[str, str]:
    return {name: entry["state"] for name, entry in report_of(folder)["clips"].items()}


# Which folder is what.


def test_an_archive_holds_a_video_and_goes_to_a_folder(archive: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    cv2.imwrite(str(frames / "0.png"), np.zeros((8, 8, 3), np.uint8))
    assert is_archive(archive, tmp_path / "hd")
    assert not is_archive(archive / "a.mp4", tmp_path / "hd")
    assert not is_archive(frames, tmp_path / "hd")
    shutil.copy(archive / "a.mp4", frames / "made_of_it.mp4")
    assert is_archive(frames, tmp_path / "hd")
    assert not is_archive(frames, tmp_path / "hd", frames / "made_of_it.mp4")
    assert not is_archive(frames, tmp_path / "hd.mp4")  # as ever: one clip of frames
    assert not is_archive(frames, frames / "made_of_it.mp4")
    with pytest.raises(UserError, match="give a folder as --output"):
        is_archive(archive, tmp_path / "hd.mp4")


def test_hidden_files_the_output_and_the_masks_are_no_clips(archive: Path) -> None:
    for name in (".a.mp4", ".trash/c.mp4", "hd/a.mp4", "masks/a.mp4"):
        (archive / name).parent.mkdir(exist_ok=True)
        shutil.copy(archive / "a.mp4", archive / name)
    clips, others = list_clips(archive, archive / "hd", "libx264", masks=archive / "masks")
    assert [str(clip.name) for clip in clips] == ["a.mp4", "sub/a.mkv", "sub/b.avi"]
    assert others == []


@pytest.mark.parametrize(
    ("codec", "names"),
    [
        ("libx264", ["a.mp4", "sub/a.mkv", "sub/b.mkv"]),
        ("prores_ks", ["a.mkv", "sub/a.mkv", "sub/b.mkv"]),
    ],
)
def test_a_container_stays_where_it_can_hold_the_codec(archive: Path, codec: str, names: list[str]) -> None:
    clips, _ = list_clips(archive, Path("hd"), codec)
    assert [str(clip.output) for clip in clips] == [f"hd/{name}" for name in names]


def test_two_sources_of_one_output_are_refused_before_work(
    restore: Callable[..., int], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(archive / "sub" / "b.avi", archive / "sub" / "b.mkv")
    assert restore(*LOSSLESS) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sub/b.avi and sub/b.mkv would both be written to" in line
    assert not (tmp_path / "hd").exists()


def test_a_comparison_may_not_take_another_clips_name(archive: Path) -> None:
    shutil.copy(archive / "a.mp4", archive / "a_x.mp4")
    with pytest.raises(UserError, match=r"a\.mp4 and a_x\.mp4 would both"):
        list_clips(archive, Path("hd"), "libx264", [lambda path: path.with_name(f"{path.stem}_x{path.suffix}")])


# One process.


def test_every_clip_goes_to_its_mirrored_place_and_again_is_skipped(
    restore: Callable[..., int], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hd = tmp_path / "hd"
    assert restore("--scale", "2") == 0
    assert files_below(hd) == {"a.mp4", "sub", "sub/a.mkv", "sub/b.mkv", "report.json"}
    for name, frames in (("a.mp4", 3), ("sub/a.mkv", 6), ("sub/b.mkv", 9)):
        info = probe(hd / name)
        assert (info.size, len(read_pixels(hd / name))) == ((64, 96), frames)
    report = report_of(hd)
    assert {name: entry["frames"] for name, entry in report["clips"].items()} == {
        "a.mp4": 3,
        "sub/a.mkv": 6,
        "sub/b.avi": 9,
    }
    assert (report["done"], report["skipped"], report["failed"], report["waiting"]) == (3, 0, 0, 0)
    assert all(entry["seconds"] > 0 for entry in report["clips"].values())

    before = {path: path.stat().st_mtime_ns for path in hd.rglob("*.m*")}
    (hd / "a.mp4").unlink()
    capsys.readouterr()
    assert restore("--scale", "2") == 0
    assert states(hd) == {"a.mp4": "done", "sub/a.mkv": "skipped", "sub/b.avi": "skipped"}
    assert f"sub/b.avi: skipped, {hd / 'sub' / 'b.mkv'} is there" in capsys.readouterr().err
    assert (hd / "sub" / "b.mkv").stat().st_mtime_ns == before[hd / "sub" / "b.mkv"]
    assert restore("--scale", "2", "--overwrite") == 0
    assert set(states(hd).values()) == {"done"}
    assert (hd / "sub" / "b.mkv").stat().st_mtime_ns > before[hd / "sub" / "b.mkv"]


def test_a_bad_file_does_not_stop_the_rest(
    restore: Callable[..., int], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "broken.mp4").write_text("not a video at all\n" * 50)
    for name in ("cover.jpg", "notes.txt", "b.idx"):
        (archive / name).touch()
    (archive / "gone.mp4").symlink_to(archive / "nowhere.mp4")
    assert restore(*LOSSLESS) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].endswith("5 videos, 5 of them for share 1/1; skipped, not videos: 1 picture and 2 other files")
    assert any(line.startswith("broken.mp4: ") and "not a video" in line for line in printed)
    assert any(line.startswith("gone.mp4: ") for line in printed)
    assert printed[-1] == f"error: 2 of 5 clips failed; {tmp_path / 'hd' / 'report.json'} says why"
    assert states(tmp_path / "hd") == {
        "a.mp4": "done",
        "broken.mp4": "failed",
        "gone.mp4": "failed",
        "sub/a.mkv": "done",
        "sub/b.avi": "done",
    }
    assert "not a video" in report_of(tmp_path / "hd")["clips"]["broken.mp4"]["error"]


WRONG = {
    "--steps -1": "--steps -1 is below 0",
    "--crf 99": "--crf 99 is outside 0 to 63; 16 is near transparent, 28 is small",
    "--scale 9": "--scale 9.0 is outside 1 to 8; choose 1 (inpaint only) to 8",
    "--box 1,2,3": "box '1,2,3' is not x,y,w,h in whole pixels; for example 16,8,120,40",
    "--mask nowhere.png": "nowhere.png does not exist; check the path",
    "--dtype fp8": "unknown dtype 'fp8'; use auto, fp32, bf16, fp16",
    "--memory 4GB --tile 256x256": "--memory chooses the tile: leave --tile out, or --memory",
}


@pytest.mark.parametrize("options", WRONG)
def test_a_wrong_option_is_said_once(
    options: str, restore: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(*options.split()) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [f"error: {WRONG[options]}"]
    assert files_below(tmp_path / "hd") == set()


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    restore: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(tmp_path)
    assert restore("--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.count("input:    ") == 3
    assert printed.splitlines()[-1].endswith("3 to do, 0 skipped, 0 failed")
    assert files_below(tmp_path) == before


def test_masks_are_found_by_their_clips_names(
    restore: Callable[..., int], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, white, black = tmp_path / "masks", np.full(SIZE, 255, np.uint8), np.zeros(SIZE, np.uint8)
    (masks / "sub" / "a").mkdir(parents=True)
    cv2.imwrite(str(masks / "a.png"), black)
    for index in range(6):
        cv2.imwrite(str(masks / "sub" / "a" / f"{index}.png"), white)
    assert restore("--codec", "ffv1", "--scale", "1", "--mask", masks) == 2  # none for sub/b.avi
    assert "there is no mask for sub/b.avi" in capsys.readouterr().err
    assert states(tmp_path / "hd") == {"a.mp4": "done", "sub/a.mkv": "done", "sub/b.avi": "failed"}
    assert np.abs(read_pixels(tmp_path / "hd" / "a.mkv") - read_pixels(archive / "a.mp4")).max() < 1.5
    assert np.abs(read_pixels(tmp_path / "hd" / "sub" / "a.mkv") - read_pixels(archive / "sub" / "a.mkv")).max() > 20


def test_one_mask_is_for_all_and_two_are_refused(tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    mask.touch()
    assert find_mask(mask, Path("sub/a.mp4")) == mask
    assert find_mask(None, Path("a.mp4")) is None
    for name in ("a.png", "a.mkv"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"2 masks for a\.mp4"):
        find_mask(tmp_path, Path("a.mp4"))


# Ends before its time.


def test_a_name_that_is_no_utf8_stays_in_the_report(tmp_path: Path) -> None:
    names = [Path(os.fsdecode(b"caf\xe9.mp4")), Path("b.mp4")]
    clips = [Clip(name, name, tmp_path / name, 1) for name in names]
    report = Report(tmp_path / "report.json", clips, clips, shared=False)
    for clip in clips:
        report.enter(clip, "done")
    kept = json.loads((tmp_path / "report.json").read_text(encoding="utf-8", errors="surrogateescape"))
    assert (kept["done"], list(kept["clips"])) == (2, [str(name) for name in names])


def test_an_archive_from_within_its_output(
    bundle: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The output is no part of its own archive, by whatever name it goes."""
    (archive / "hd").mkdir()
    monkeypatch.chdir(archive / "hd")
    given = ["--input", "..", "--output", ".", "--model", str(bundle), "--scale", "2"]
    for expected in ("done", "skipped"):
        assert call(infer, *given) == 0
        assert states(archive / "hd") == dict.fromkeys(["a.mp4", "sub/a.mkv", "sub/b.avi"], expected)


@pytest.fixture
def runs(bundle: Path, tmp_path: Path) -> Runs:
    """On an archive whose second clip is long."""
    folder = tmp_path / "films"
    folder.mkdir()
    write_clip(folder / "a.mkv", pan(3, *SIZE))
    write_clip(folder / "b.mkv", pan(43, *SIZE))
    write_clip(folder / "c.mkv", pan(5, *SIZE))
    return Runs(folder, bundle, tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_end_in_the_middle_leaves_a_true_report_and_work_that_goes_on(
    runs: Runs, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    hd, whole = tmp_path / "hd", tmp_path / "whole"
    process = runs.start(hd, "--codec", "ffv1")
    wait_until(lambda: len(list(parts_folder(hd / "b.mkv").glob("*.result"))) >= 2, process)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code, runs.lines
    assert states(hd) == {"a.mkv": "done", "b.mkv": "waiting", "c.mkv": "waiting"}
    assert runs.run(hd, "--codec", "ffv1") == 0
    assert states(hd) == {"a.mkv": "skipped", "b.mkv": "done", "c.mkv": "done"}
    assert any(line.startswith("going on: ") for line in runs.lines)
    assert runs.run(whole, "--codec", "ffv1") == 0
    assert same_frames(hd / "b.mkv", whole / "b.mkv")
    assert files_below(hd) == {"a.mkv", "b.mkv", "c.mkv", "report.json"}


# Several processes.


def test_shares_are_whole_clips_and_long_ones_are_spread() -> None:
    clips = [
        Clip(Path(name), Path(name), Path(name), size) for name, size in zip("abcde", (1, 9, 2, 8, 3), strict=True)
    ]
    own = [[str(clip.name) for clip in own_clips(clips, Share(i, 2))] for i in range(2)]
    assert own == [["a", "b", "e"], ["c", "d"]]


def test_two_processes_give_the_frames_of_one(runs: Runs, tmp_path: Path) -> None:
    alone, hd = tmp_path / "alone", tmp_path / "hd"
    assert runs.run(alone, "--codec", "ffv1") == 0
    processes = [runs.start(hd, "--codec", "ffv1", "--share", f"{i}/2") for i in (1, 2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0], runs.lines
    assert states(hd) == {"a.mkv": "done", "b.mkv": "done", "c.mkv": "done"}
    for name in ("a.mkv", "b.mkv", "c.mkv"):
        assert same_frames(hd / name, alone / name)


def test_a_process_that_failed_waits_for_those_that_have_not_even_begun() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launch = {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
    launch["MASTER_PORT"] = str(store.port)
    failed = threading.Thread(target=finish, args=(launch, True))
    failed.start()
    for _ in range(2):
        failed.join(0.7)
        assert failed.is_alive()
        finish(launch, failed=False)  # returns at once
    failed.join(20)
    assert not failed.is_alive()


def test_without_torchrun_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_video.pipeline.workers._STORE_TIMEOUT", 1.0)
    finish({"RANK": "0", "WORLD_SIZE": "2"}, failed=True)
    port = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port  # closed at once: nobody is there
    gone = {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    finish(gone | {"MASTER_PORT": str(port)}, failed=True)


@pytest.mark.slow
def test_under_torchrun_a_bad_file_of_one_process_does_not_end_the_others(runs: Runs, tmp_path: Path) -> None:
    """torchrun ends all processes when one ends with an error: that one waits for the others."""
    (runs.clip / "bad.mkv").write_bytes(b"x" * 10**6)  # the largest: the first process's
    hd = tmp_path / "hd"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ROOT / "infer.py",
        "--input", runs.clip, "--output", hd, "--model", runs.bundle, "--codec", "ffv1", "--scale", 2,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0
    assert states(hd) == {"a.mkv": "done", "b.mkv": "done", "bad.mkv": "failed", "c.mkv": "done"}
