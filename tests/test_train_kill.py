"""``kill -9`` of a real ``train.py`` and the same command again: losses and weights of a run that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli_support import write_tiny_bundle
from tests.train_support import Run, differing, logged, stage_options, start, wait_until, weights

STEPS = 16


def freeze(process: Run) -> None:
    """Stop a process where it stands, and return when it does."""
    os.kill(process.pid, signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
        time.sleep(0.001)


def kill_at_step(process: Run, run: Path, step: int) -> None:
    """``kill -9`` as soon as the log shows ``step``."""
    wait_until(lambda: max(logged(run), default=-1) >= step, process, run.with_suffix(".txt"))
    process.kill()
    process.wait()


def kill_in_checkpoint(process: Run, run: Path) -> None:
    """``kill -9`` while a checkpoint is being written: its temporary file is there, not yet renamed."""

    def writing() -> bool:
        return any((run / "checkpoints").glob(".*.part.ckpt"))

    def caught() -> bool:
        if not writing():
            return False
        freeze(process)
        if not writing():  # it was finished between the look and the stop
            os.kill(process.pid, signal.SIGCONT)
            return False
        return True

    before = {path.name for path in (run / "checkpoints").glob(".*.part.ckpt")}
    assert before == set()
    wait_until(caught, process, run.with_suffix(".txt"), every=0.0005)
    process.kill()
    process.wait()
    assert writing()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("stage", ["codec", "denoiser"])
def test_a_killed_run_continues_bit_for_bit(stage: str, tmp_path: Path, write_video: Callable[..., Path]) -> None:
    write_video(tmp_path / "clips" / "a.mp4", frames=6, size=(112, 128))
    options = stage_options(stage, tmp_path / "clips", write_tiny_bundle(tmp_path / "bundle"), STEPS)
    straight, run = tmp_path / "straight", tmp_path / "killed"
    # In a process of its own, as the others: another test of this one may have left other kernels chosen. Of one stage
    # it is a new interpreter, as a user's: what is forked does the same, bit for bit.
    cold = stage == "codec"
    assert start(*options, f"output={straight}", log=tmp_path / "straight.txt", cold=cold).wait() == 0

    command, log = [*options, f"output={run}"], tmp_path / "killed.txt"
    kill_at_step(start(*command, log=log, cold=False), run, random.Random(stage).randrange(3, 7))
    assert not (run / "bundle").exists()
    kill_in_checkpoint(start(*command, log=log, cold=False), run)
    assert not (run / "bundle").exists()
    assert "resuming from" in log.read_text()
    assert start(*command, log=log, cold=False).wait() == 0

    losses = logged(straight)
    assert sorted(losses) == list(range(STEPS))
    assert len(set(losses.values())) == STEPS
    assert logged(run) == losses
    assert differing(weights(straight), weights(run)) == []
    assert not list(run.rglob("*.part*"))
