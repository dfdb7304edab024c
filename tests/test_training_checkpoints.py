"""Checkpoints that are whole or not there, the last good one, and what a full disk does to a run."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

import train
from ldm_video.core.errors import UserError
from ldm_video.training.checkpoints import AtomicCheckpointIO, last_good, read_checkpoint
from tests.cli_support import call, write_tiny_bundle
from tests.train_support import stage_options

SAVE = AtomicCheckpointIO().save_checkpoint


def checkpoint(step: int, numbers: int = 1000) -> dict:
    return {"global_step": step, "state_dict": {"weight": torch.full((numbers,), float(step))}}


def names(folder: Path) -> list[str]:
    """Hidden files too."""
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: the system refuses the write in the middle, as a full quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    SAVE(checkpoint(7), path)
    found, content = last_good(path.parent)
    assert found == path and content["global_step"] == 7
    assert torch.equal(content["state_dict"]["weight"], torch.full((1000,), 7.0))
    assert last_good(tmp_path / "nowhere") == (None, {})


def memory() -> int:
    """Bytes of this process that are its own, and no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's account of a process")
@pytest.mark.parametrize("read", [read_checkpoint, partial(AtomicCheckpointIO().load_checkpoint, weights_only=False)])
def test_reading_takes_no_memory_for_what_is_not_changed(tmp_path: Path, read: Callable[[Path], dict]) -> None:
    """Each process of a run reads it, and most of them look at a number and some shapes."""
    path, size = tmp_path / "last.ckpt", 64_000_000
    SAVE(checkpoint(3, numbers=size // 4), path)
    written, before = path.read_bytes(), memory()
    weight = read(path)["state_dict"]["weight"]
    assert torch.equal(weight[::1000], torch.full((size // 4000,), 3.0))
    assert memory() - before < size / 4
    weight += 1  # as an optimizer does that took the tensor over
    assert memory() - before > size * 3 / 4
    assert path.read_bytes() == written


class _Witness:
    """Looks at the checkpoint's place at the moment at which it is written itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getstate__(self) -> dict:
        return {"step_seen": last_good(self.path.parent)[1]["global_step"], "there": names(self.path.parent)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)


def test_the_old_one_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    SAVE(checkpoint(1), path)
    SAVE({**checkpoint(2), "witness": _Witness(path)}, path)
    content = last_good(tmp_path)[1]
    assert content["global_step"] == 2
    assert content["witness"].step_seen == 1
    unfinished, lock = sorted(set(content["witness"].there) - {"last.ckpt"})
    assert unfinished.startswith(".last.") and unfinished.endswith(".part.ckpt")
    assert lock == f"{unfinished}.lock"
    assert names(tmp_path) == ["last.ckpt"]


def test_what_a_killed_writer_left_is_never_read_and_soon_removed(tmp_path: Path) -> None:
    SAVE(checkpoint(1), tmp_path / "last.ckpt")
    torch.save(checkpoint(9), tmp_path / ".epoch=0-step=9.01234567.part.ckpt")
    (tmp_path / ".epoch=0-step=9.01234567.part.ckpt.lock").touch()
    assert last_good(tmp_path)[1]["global_step"] == 1
    SAVE(checkpoint(2), tmp_path / "last.ckpt")
    assert names(tmp_path) == ["last.ckpt"]


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def turn_bits(path: Path) -> None:
    """In the weights themselves."""
    content = bytearray(path.read_bytes())
    start = content.index(torch.full((100,), 2.0).numpy().tobytes())
    content[start : start + 100] = bytes(100)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, empty, overwrite, turn_bits])
def test_a_damaged_file_is_answered_by_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    before, last = tmp_path / "epoch=0-step=1.ckpt", tmp_path / "last.ckpt"
    SAVE(checkpoint(1), before)
    SAVE(checkpoint(2), last)
    damage(last)
    path, content = last_good(tmp_path)
    assert path == before and content["global_step"] == 1
    (line,) = caplog.messages
    assert str(last) in line and "damaged" in line and "\n" not in line
    damage_all(tmp_path)
    with pytest.raises(UserError, match="--restart"):
        last_good(tmp_path)


def damage_all(folder: Path) -> None:
    for path in folder.iterdir():
        empty(path)


def test_the_newest_wins_and_not_the_highest_step(tmp_path: Path) -> None:
    """A run that was begun anew counts its steps anew; two of the same instant are told apart by their names."""
    for number, (name, step) in enumerate((("epoch=0-step=9.ckpt", 9), ("last.ckpt", 3), ("epoch=0-step=3.ckpt", 3))):
        SAVE(checkpoint(step), tmp_path / name)
        os.utime(tmp_path / name, ns=(0, min(number, 1)))
    assert last_good(tmp_path)[0] == tmp_path / "last.ckpt"


def test_a_full_disk_leaves_the_old_one(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    SAVE(checkpoint(1), path)
    with pytest.raises(UserError, match=f"no space left on the disk of {path}"):
        SAVE(checkpoint(2, numbers=500_000), path)  # 2 MB
    assert names(small_disk) == ["last.ckpt"]
    assert last_good(small_disk)[1]["global_step"] == 1


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        SAVE(checkpoint(1), tmp_path / "file" / "last.ckpt")


# The command line.


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    write_video(folder / "clips" / "a.mp4", frames=6, size=(112, 128))
    stage = stage_options("codec", folder / "clips", write_tiny_bundle(folder / "bundle"), steps=2)
    return [*stage, "checkpoint_every=1"]


def test_a_run_survives_a_full_disk(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One line, exit code 2, the checkpoints untouched; then it goes on, past a last.ckpt that was cut short."""
    output = tmp_path / "run"
    folder = output / "checkpoints"
    assert call(train, *options, f"output={output}") == 0
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    assert sorted(before) == ["epoch=0-step=2.ckpt", "last.ckpt"]
    capsys.readouterr()
    with largest_file(len(before["last.ckpt"]) // 2):
        assert call(train, *options, f"output={output}", "trainer.max_steps=4") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "no space left" in line and str(output) in line
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before

    cut_short(folder / "last.ckpt")
    with caplog.at_level("INFO"):
        assert call(train, *options, f"output={output}", "trainer.max_steps=4") == 0
    assert "is damaged and was skipped" in caplog.text
    assert f"resuming from {folder / 'epoch=0-step=2.ckpt'} at step 2" in caplog.text
    straight = tmp_path / "straight"
    assert call(train, *options, f"output={straight}", "trainer.max_steps=4") == 0
    # Lightning keeps the averaged weights and the optimizer's memory there too: all of it is equal.
    resumed, expected = (last_good(run / "checkpoints")[1] for run in (output, straight))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, expected[key][name]) for name, value in resumed[key].items())


def test_a_full_disk_met_by_the_log_is_one_line_too(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(train, *options, f"output={tmp_path / 'run'}") == 0
    capsys.readouterr()
    with largest_file(64):
        assert call(train, *options, f"output={tmp_path / 'new'}", "checkpoint_every=1000") == 2
    assert "no space left" in capsys.readouterr().err.splitlines()[-1]
