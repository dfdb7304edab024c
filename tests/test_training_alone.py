"""Two runs of one output folder: the second one is refused; and whose run a checkpoint says that it is."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import train
from ldm_video.core.errors import UserError
from ldm_video.core.locks import is_held, locked
from ldm_video.training import alone as alone_module
from ldm_video.training.alone import LOCK, alone
from ldm_video.training.checkpoints import AtomicCheckpointIO, changes
from tests.cli_support import call, files_below
from tests.train_support import logged, overfit_options, start, wait_until


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> list[str]:
    """A codec that trains for a few steps in a second."""
    folder = tmp_path_factory.mktemp("data")
    write_video(folder / "clips" / "a.mp4", frames=4, size=(112, 128))
    return [*overfit_options(folder, steps=2), "checkpoint_every=1"]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder) if (folder / name).is_file()}


def test_a_second_run_is_refused_and_changes_nothing(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with alone(run, {}):
        before = contents(run)
        for more in ([], ["--restart"], ["trainer.max_steps=3"]):
            assert call(train, *options, f"output={run}", *more) == 2
            assert f"error: another run is at work in {run}; " in capsys.readouterr().err.splitlines()[-1]
        assert contents(run) == before
    assert call(train, *options, f"output={run}") == 0


@pytest.mark.slow
def test_a_run_has_its_folder_until_it_is_killed(options: list[str], tmp_path: Path) -> None:
    """With a process that loads data, which lives on for seconds after the one that it loads for."""
    run, log = tmp_path / "run", tmp_path / "run.txt"
    long = [*options, f"output={run}", "trainer.max_steps=5000", "data.workers=1", "trainer.overfit_batches=0"]
    process = start(*long, log=log, cold=False)
    wait_until(lambda: max(logged(run), default=-1) >= 3, process, log)
    assert call(train, *options, f"output={run}", "trainer.max_steps=5000", "trainer.overfit_batches=0") == 2
    process.kill()
    process.wait()
    assert call(train, *options, f"output={run}", "trainer.max_steps=3", "trainer.overfit_batches=0") == 0


def test_a_fork_does_not_keep_a_lock(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with locked(tmp_path / "lock"):
        child.start()
        assert is_held(tmp_path / "lock")
    try:
        deadline = time.monotonic() + 30  # the child may not have come to close its copy yet
        while is_held(tmp_path / "lock"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_a_job_that_comes_back_waits_for_its_last_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    last = alone(tmp_path, {})
    last.__enter__()
    monkeypatch.setattr(alone_module.time, "sleep", lambda _: last.__exit__(None, None, None))
    with alone(tmp_path, {}):
        assert is_held(tmp_path / LOCK)


def test_a_run_that_ended_in_between_is_noticed(tmp_path: Path) -> None:
    found = changes(tmp_path / "checkpoints")
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="run the same command again"), alone(tmp_path, found):
        raise AssertionError
    seen = changes(tmp_path / "checkpoints")
    os.utime(tmp_path / "checkpoints" / "last.ckpt", ns=(1, 1))
    with pytest.raises(UserError, match="run the same command again"), alone(tmp_path, seen):
        raise AssertionError
    with alone(tmp_path, changes(tmp_path / "checkpoints")):
        pass


def test_a_checkpoint_says_itself_whose_it_is(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside it lies the configuration of another run, as if two had been at work in the folder."""
    run = tmp_path / "run"
    options = [*options, f"output={run}", "trainer.max_steps=1"]
    assert call(train, *options, "optimizer.lr=0.001") == 0
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["run"]
    assert kept == OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    other = OmegaConf.load(run / "config.yaml")
    other.optimizer.lr = 0.002
    OmegaConf.save(other, run / "config.yaml")
    assert call(train, *options, "optimizer.lr=0.002") == 2
    assert "optimizer.lr=0.001, and now it is 0.002" in capsys.readouterr().err.splitlines()[-1]
    assert call(train, *options, "optimizer.lr=0.001") == 0
    (run / "config.yaml").unlink()
    assert call(train, *options, "optimizer.lr=0.002") == 0
