"""What the tests of whole training runs share: the smallest run of each stage, its losses and its weights."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_video.models.bundle import load_bundle
from ldm_video.training.model_stage import Conditioning
from tests.cli_support import ROOT

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


def start(*arguments: object, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start ``train.py`` as a user does, in its own session, with its output in the file ``log``."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    with open(log, "ab") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | environment,
            start_new_session=True,
            preexec_fn=_mind_interrupts,
        )


def _mind_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what runs in the background of a shell ignores them


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, every: float = 0.02) -> None:
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
