"""SLURM: the sbatch file on a real two-node cluster, and giving way to a signal with and without one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import train
from tests.cli_support import ROOT, call, write_tiny_bundle
from tests.slurm_support import cluster, job_facts, missing
from tests.train_support import differing, logged, stage_options, start, wait_until, weights

SBATCH = ROOT / "slurm" / "train.sbatch"


@pytest.fixture
def options(tmp_path: Path, write_video: Callable[..., Path]) -> list[str]:
    write_video(tmp_path / "clips" / "a.mp4", frames=6, size=(112, 128))
    return stage_options("denoiser", tmp_path / "clips", write_tiny_bundle(tmp_path / "bundle"), steps=24)


def checkpoint_step(run: Path) -> int:
    # Written by this very test a moment ago.
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["global_step"]


@pytest.mark.slow
def test_sigterm_saves_the_step_that_was_under_way(options: list[str], tmp_path: Path) -> None:
    options = [*options, "checkpoint_every=1000"]  # what there is was written because of the signal
    straight, run, log = tmp_path / "straight", tmp_path / "run", tmp_path / "run.txt"
    process = start(*options, f"output={run}", log=log, cold=False)
    wait_until(lambda: max(logged(run), default=-1) >= 3, process, log)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert 4 <= checkpoint_step(run) < 24
    assert f"SIGTERM: saved {run}/checkpoints/last.ckpt at step {checkpoint_step(run)}" in log.read_text()
    before = signal.getsignal(signal.SIGTERM)
    assert call(train, *options, f"output={run}") == 0
    assert call(train, *options, f"output={straight}") == 0
    assert signal.getsignal(signal.SIGTERM) == before  # a fit leaves no handler behind
    assert logged(run) == logged(straight)
    assert differing(weights(run), weights(straight)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_ends_a_run_with_workers(
    options: list[str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """As a cluster's and a terminal's: the processes that load data get it too."""
    run, log = tmp_path / "run", tmp_path / "run.txt"
    long = ["trainer.max_steps=5000", "checkpoint_every=10000"]  # so that it is not over before the signal comes
    process = start(*options, "data.workers=1", *long, f"output={run}", log=log, cold=number == signal.SIGTERM)
    wait_until(lambda: max(logged(run), default=-1) >= 3, process, log)
    os.killpg(process.pid, number)
    assert process.wait(60) == code, log.read_text()[-3000:]
    if number == signal.SIGTERM:
        assert 4 <= checkpoint_step(run) < 5000


@pytest.mark.slow
def test_under_slurms_variables_the_warning_saves_and_requeues(options: list[str], tmp_path: Path) -> None:
    """One task of one node, as ``srun`` starts it; a ``scontrol`` that writes down what it is asked."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked.txt\n')
    scontrol.chmod(0o755)
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "ldm-video",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }
    run, log = tmp_path / "run", tmp_path / "run.txt"
    process = start(*options, f"output={run}", log=log, **job)
    wait_until(lambda: max(logged(run), default=-1) >= 3, process, log)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 128 + signal.SIGUSR1
    assert (tmp_path / "asked.txt").read_text() == "requeue 4711\n"
    assert 4 <= checkpoint_step(run) < 24
    assert not list(run.glob("hpc_ckpt*"))  # Lightning's own, which would be taken up at another step


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path / "slurm") as environment:
        yield environment


@pytest.mark.slow
def test_a_job_on_two_nodes_gives_way_and_comes_back(options: list[str], tmp_path: Path, slurm: dict[str, str]) -> None:
    """Warned in the middle it requeues itself, goes on, and ends where one process with the joint batch does."""
    options = [*options, "trainer.precision=64-true"]
    run, log = tmp_path / "run", tmp_path / "job.txt"
    sizes = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
    # The nodes' names stand for this machine: no name server knows them.
    environment = slurm | {"PYTHON": sys.executable, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = ["sbatch", "--parsable", *sizes, f"--output={log}", str(SBATCH), *options, f"output={run}"]
    submitted = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            said = log.read_text()[-3000:] if log.exists() else ""
            assert time.monotonic() < deadline, f"{job} {job_facts(job, slurm)}\n{said}"
            time.sleep(0.05)

    until(lambda: max(logged(run), default=-1) >= 3)
    subprocess.run(["scancel", "--signal=USR1", job], env=slurm, check=True)
    until(lambda: [job_facts(job, slurm).get(key) for key in ("Restarts", "JobState")] == ["1", "PENDING"])
    # SLURM lets a requeued job wait for two minutes.
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=slurm, check=True)
    assert not (run / "bundle").exists()
    until(lambda: job_facts(job, slurm).get("JobState") not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"))
    assert job_facts(job, slurm)["JobState"] == "COMPLETED", log.read_text()[-3000:]
    said = log.read_text()
    assert f"job {job} is back in the queue" in said
    assert f"resuming from {run}/checkpoints/last.ckpt" in said

    one = tmp_path / "one"
    assert call(train, *options, "data.batch=2", f"output={one}") == 0
    joint, parted = weights(one), weights(run)
    for name, expected in joint.items():
        torch.testing.assert_close(
            parted[name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
