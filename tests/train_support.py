"""What the tests of whole training runs share: the smallest run of each stage, its losses and its weights."""

from __future__ import annotations

import atexit
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_video.core.errors import run_cli
from ldm_video.models.bundle import load_bundle
from ldm_video.training.model_stage import Conditioning
from tests.cli_support import ROOT
from tests.fork_support import forks

STAGES = ROOT / "configs" / "train" / "tiny"
# Of a process that is started: one thread, and nothing of a cluster's job that the tests may run in.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")} | {
    "OMP_NUM_THREADS": "1"
}


def stage_options(stage: str, clips: Path, bundle: Path, steps: int = 6) -> list[str]:
    """Arguments of ``train.py`` for a quick CPU run of a stage of the shipped model, without its output folder."""
    overrides = [
        f"init_from={bundle}",
        f"data.root={clips}",
        f"data.cache={clips.parent / 'cache'}",
        "data.size=64",
        "data.batch=1",
        "data.frames=2",
        f"trainer.max_steps={steps}",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        "optimizer.lr=0.01",
        "checkpoint_every=2",
        "logger=csv",
        "watch=null",
    ]
    if stage == "codec":
        overrides.append("model=null")
    if stage != "denoiser":
        overrides.append("task.pixel_loss.perceptual=null")
    return ["--config", str(STAGES / f"{stage}.yaml"), *overrides]


def overfit_options(folder: Path, steps: int = 4) -> list[str]:
    """Arguments of ``train.py`` for a codec that trains on ``folder/clips`` in a second, without its output folder."""
    return [
        "--config",
        str(ROOT / "configs" / "debug" / "overfit.yaml"),
        f"data.root={folder / 'clips'}",
        f"data.cache={folder / 'cache'}",
        "data.size=64",
        "data.frames=2",
        f"trainer.max_steps={steps}",
        "trainer.log_every_n_steps=1",
        "watch=null",
    ]


def start(*arguments: object, log: Path, cold: bool = True, **environment: str) -> Run:
    """Start ``train.py`` in a session of its own, with its output in the file ``log``.

    ``cold`` is as a user does it: a new interpreter, which takes seconds to load everything. Else a fork has it loaded.
    """
    variables = ENVIRONMENT | environment
    if not cold:
        process = forks.Process(target=run_train, args=([*map(str, arguments)], variables, str(log)))
        process.start()
        return Forked(process)
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    with open(log, "ab") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
            preexec_fn=_mind_interrupts,
        )


def _mind_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background of a shell ignores them


def run_train(arguments: list[str], environment: Mapping[str, str], log: str) -> None:
    """What the forked process does: all that a new interpreter would, but for loading."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import train

    torch.set_num_threads(1)
    sys.argv = [str(ROOT / "train.py"), *arguments]
    try:
        run_cli(train.main)
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out


class Forked:
    """The process that a server has forked, with what the tests use of :class:`subprocess.Popen`."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Run = subprocess.Popen[bytes] | Forked


def wait_until(condition: Callable[[], bool], process: Run, log: Path, every: float = 0.02) -> None:
    """Poll ``condition``; an end of the process, or two minutes, are a failure that shows the log."""
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"exit code {process.poll()}; log:\n{log.read_text()[-3000:]}")
        time.sleep(every)


def logged(run: Path, column: str = "train/loss") -> dict[int, float]:
    """Step -> value of a column of the CSV log; of a step that was done twice, the later run's."""
    values: dict[int, float] = {}
    for path in sorted((run / "log").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        with open(path, newline="") as file:
            values.update({int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)})
    return values


def weights(run: Path) -> Mapping[str, Tensor]:
    """The weights of a finished run's bundle."""
    return load_bundle(run / "bundle").state_dict()


def differing(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that are not bit for bit the same."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def conditioned(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a stage, with those of its :class:`Conditioning` gathered into one."""
    names = {field.name for field in fields(Conditioning)}
    own = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    return {**rest, "conditioning": Conditioning(**own)} if own else rest
