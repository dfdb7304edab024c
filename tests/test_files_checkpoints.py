"""Whole-or-absent files; errors in one line; pixels and clips as tensors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldm_video.core import files
from ldm_video.core.errors import UserError, run_cli
from ldm_video.core.files import atomic_path, sweep
from ldm_video.core.locks import locked
from ldm_video.core.tensors import fold_time, to_bytes, to_signed, unfold_time
from tests.files_support import names


def test_a_file_appears_whole_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "clip.mp4"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".mp4"  # muxers choose the container by it
        assert temporary.parent == target.parent
        temporary.write_bytes(b"frames")
        assert not target.exists()
    assert target.read_bytes() == b"frames"
    assert names(target.parent) == ["clip.mp4"]


def test_all_that_is_in_a_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        done.append(str(os.fstat(handle).st_ino))
        sync(handle)

    def note_rename(old: Path, new: Path) -> None:
        done.append("renamed")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    with atomic_path(tmp_path / "frames") as temporary:
        (temporary / "deep").mkdir(parents=True)
        for name in ("0.png", "deep/1.png"):
            (temporary / name).write_bytes(b"picture")
    inodes = {str(path.stat().st_ino) for path in (tmp_path / "frames", *(tmp_path / "frames").rglob("*"))}
    *written, renamed, last = done
    assert (set(written), renamed, len(inodes)) == (inodes, "renamed", 4)
    assert last == str(tmp_path.stat().st_ino)  # and then its name


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, UserError])
def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "clip.mp4"
    target.write_bytes(b"old")
    with pytest.raises(failure), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise failure("stopped")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["clip.mp4"]


def test_a_folder_replaces_a_folder_and_a_failure_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "frames"
    for index in range(2):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / f"{index}.png").write_bytes(b"")
        assert names(target) == [f"{index}.png"]
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "2.png").write_bytes(b"")
        raise RuntimeError("stopped")
    assert names(target) == ["1.png"]
    assert names(tmp_path) == ["frames"]


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "no space left"), (errno.EACCES, "cannot write"), (errno.EROFS, "cannot write")]
)
def test_a_full_or_closed_disk_is_one_clear_line(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught, atomic_path(tmp_path / "clip.mp4") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(code, os.strerror(code))
    assert str(tmp_path / "clip.mp4") in str(caught.value)
    assert names(tmp_path) == []


def test_an_error_that_is_not_about_the_place_keeps_its_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "clip.mp4"):
        (tmp_path / "absent").read_bytes()


def test_a_place_that_cannot_hold_the_output_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(UserError, match="cannot write"), atomic_path(tmp_path / "file" / "clip.mp4"):
        raise AssertionError("the body must not run")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write"), atomic_path(tmp_path / "folder") as temporary:
        temporary.write_bytes(b"a file where a folder is")
    with pytest.raises(UserError, match="cannot write"), atomic_path(tmp_path / "file") as temporary:
        temporary.mkdir()  # a folder where a file is
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"kept"


def write_and_be_killed(target: Path, after: str) -> None:
    """A process that writes a file or a folder at ``target`` and kills itself before (``write``) or in the renaming."""
    code = """
import os, pathlib, signal, sys
from ldm_video.core.files import atomic_path, sweep
from ldm_video.core.locks import locked
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
with atomic_path(pathlib.Path(sys.argv[1])) as temporary:
    if pathlib.Path(sys.argv[1]).suffix:
        temporary.write_text("half")
    else:
        temporary.mkdir()
        (temporary / "half.png").touch()
    if sys.argv[2] == "write":
        die()
    rename, os.replace = os.replace, lambda old, new: (rename(old, new), die())
"""
    done = subprocess.run([sys.executable, "-c", code, str(target), after], check=False)
    assert done.returncode == -9


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
@pytest.mark.parametrize("name", ["clip [1].mp4", "frames"])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, name: str) -> None:
    write_and_be_killed(tmp_path / name, "write")
    write_and_be_killed(tmp_path / "another.mp4", "write")
    theirs = [left for left in names(tmp_path) if left.startswith(".another.")]
    assert len(names(tmp_path)) == 4 and len(theirs) == 2  # of each, what it wrote and its lock
    with pytest.raises(RuntimeError), atomic_path(tmp_path / name):
        raise RuntimeError("not even whole")
    assert names(tmp_path) == theirs
    sweep(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_what_a_live_process_writes_is_not_swept(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "clip.mp4") as first:
        first.write_bytes(b"first")
        with atomic_path(tmp_path / "clip.mp4") as second:
            second.write_bytes(b"second")
        sweep(tmp_path)
        assert (tmp_path / "clip.mp4").read_bytes() == b"second"
    assert (tmp_path / "clip.mp4").read_bytes() == b"first"
    assert names(tmp_path) == ["clip.mp4"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_a_folder_whose_replacing_was_cut_off_comes_back(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "old.png").touch()
    write_and_be_killed(tmp_path / "frames", "rename")
    assert not (tmp_path / "frames").exists()
    sweep(tmp_path)
    assert names(tmp_path) == ["frames"] and names(tmp_path / "frames") == ["old.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_a_name_that_was_swept_before_it_was_locked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []

    @contextmanager
    def slow(lock: Path) -> Iterator[bool]:
        with locked(lock):
            tried.append(lock)
            if len(tried) == 1:
                lock.unlink()
            yield True

    monkeypatch.setattr(files, "locked", slow)
    with atomic_path(tmp_path / "clip.mp4") as temporary:
        temporary.touch()
        assert names(tmp_path) == [temporary.name, tried[1].name]
    assert names(tmp_path) == ["clip.mp4"]


def test_a_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("no such clip:\n  sd.mp4;\tgive another")

    with pytest.raises(SystemExit) as caught:
        run_cli(fail)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such clip: sd.mp4; give another\n"


def test_bytes_and_signed_pixels_are_inverse_and_clipped() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_signed(every)), every)
    assert to_signed(every)[[0, 255]].tolist() == [-1.0, 1.0]
    assert to_bytes(torch.tensor([-1.5, -1 + 0.6 / 127.5, 0.9999, 7.0])).tolist() == [0, 1, 255, 255]
    assert every[255] == 255  # the input is left alone


@given(st.integers(1, 3), st.integers(1, 4))
def test_folding_time_keeps_clips_together(batch: int, frames: int) -> None:
    x: Tensor = torch.from_numpy(np.arange(batch * frames * 24).reshape(batch, frames, 2, 3, 4))
    folded = fold_time(x)
    for b in range(batch):
        for t in range(frames):
            assert torch.equal(folded[b * frames + t], x[b, t])
    assert torch.equal(unfold_time(folded, frames), x)
