"""What stops a run, and what must not: batches that are gathered, signals to workers, overflow, no ``scontrol``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import train
from ldm_video.core.errors import UserError
from ldm_video.training.checkpoints import AtomicCheckpointIO
from ldm_video.training.codec_task import CodecTask
from ldm_video.training.preemption import Preemption, requeue
from ldm_video.training.stage import Stage
from ldm_video.training.trainer import trainer_options
from tests.cli_support import ROOT, call
from tests.train_support import differing, logged, overfit_options, weights

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


@pytest.fixture
def options(tmp_path: Path, write_video: Callable[..., Path]) -> list[str]:
    """A codec that gathers four batches for each of its steps."""
    write_video(tmp_path / "clips" / "a.mp4", frames=4, size=(112, 128))
    steps = ["+trainer.accumulate_grad_batches=4", "trainer.overfit_batches=0", "checkpoint_every=2"]
    return [*overfit_options(tmp_path), *steps]


def test_two_stops_between_checkpoints_change_nothing_where_gradients_are_gathered(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start after the checkpoint of step 2 stops within step 3, and so does the second one."""
    run, straight = [*options, f"output={tmp_path / 'run'}"], [*options, f"output={tmp_path / 'straight'}"]
    step = CodecTask.training_step
    for last in (10, 9):

        def stops(self: CodecTask, batch: dict[str, Tensor], index: int, last: int = last) -> Tensor:
            if index == last:
                raise UserError("the power is gone")
            return step(self, batch, index)

        with monkeypatch.context() as patch:
            patch.setattr(CodecTask, "training_step", stops)
            assert call(train, *run) == 2
    assert call(train, *run) == 0
    assert call(train, *straight) == 0
    assert logged(tmp_path / "run") == logged(tmp_path / "straight")
    assert differing(weights(tmp_path / "run"), weights(tmp_path / "straight")) == []


def test_a_stop_between_a_checkpoint_and_its_row_leaves_no_gap_in_the_log(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning writes the row afterwards: the step is not done again, and nothing else knows what it logged."""
    run, straight = [*options, f"output={tmp_path / 'run'}"], [*options, f"output={tmp_path / 'straight'}"]
    save = AtomicCheckpointIO.save_checkpoint

    def stops(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: str | Path, **rest: Any) -> None:
        save(self, checkpoint, path, **rest)
        if Path(path).name == "last.ckpt":
            raise UserError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", stops)
        assert call(train, *run) == 2
    assert max(logged(tmp_path / "run")) == 0  # of the two steps that are done
    assert call(train, *run) == 0
    assert call(train, *straight) == 0
    for series in ("train/loss", "gradient/codec"):
        assert sorted(logged(tmp_path / "straight", series)) == [0, 1, 2, 3]
        assert logged(tmp_path / "run", series) == logged(tmp_path / "straight", series)


@pytest.mark.parametrize(
    ("section", "batches"),
    [
        ({"val_check_interval": 500, "accumulate_grad_batches": 4}, 2000),
        ({"val_check_interval": 500}, 500),
        ({"val_check_interval": 0.25, "accumulate_grad_batches": 4}, 0.25),
    ],
)
def test_validation_counts_steps_and_lightning_batches(section: dict[str, Any], batches: float) -> None:
    assert trainer_options(OmegaConf.create(section))["val_check_interval"] == batches


class Slope(Stage):
    """The root of zero: its loss is as good as ever, its gradient is NaN at every step from ``bad`` on."""

    def __init__(self, bad: int) -> None:
        super().__init__(partial(torch.optim.AdamW, lr=0.1), warmup=0)
        self.weight = nn.Parameter(torch.zeros(3))
        self.bad = range(bad, bad + 3) if bad else range(1000)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        zero = (self.weight - self.weight.detach()).square().sum()
        return self.finite(zero.sqrt() if index in self.bad else self.weight.sum(), {"hr": batch})


def fit_in_half(stage: Stage, folder: Path) -> None:
    trainer = pl.Trainer(
        max_steps=40, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, gradient_clip_val=1.0,
        plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))],
    )  # fmt: skip
    trainer.fit(stage, DataLoader(torch.zeros(40, 1)))


def test_a_gradient_that_stays_nan_stops_a_run_in_half_precision(tmp_path: Path) -> None:
    """The scale begins at 2 ** 16: seventeen halvings later no overflow explains it."""
    with pytest.raises(UserError, match=r"the gradient is nan at step 17; its batch is saved in"):
        fit_in_half(Slope(bad=0), tmp_path)
    assert list(tmp_path.glob("bad_batch_step17_rank0.safetensors"))


def test_a_few_that_overflow_are_skipped_in_half_precision(tmp_path: Path) -> None:
    stage = Slope(bad=5)
    fit_in_half(stage, tmp_path)
    assert torch.isfinite(stage.weight).all()


# Processes that load data.


class Workers(Dataset[int]):
    """Each item is the process that loaded it."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Iterator[Tensor]]:
    """What ``train.py`` loads in one process beside its own."""
    monkeypatch.setattr(train, "build", lambda _: Workers())
    data = {"batch": 1, "workers": 1, "train": {}}
    config = OmegaConf.create({"data": data, "trainer": {"max_steps": 1000}})
    yield iter(train.build_loaders(config, 0)["train_dataloaders"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_group_leaves_the_workers_alone(batches: Iterator[Tensor], number: signal.Signals) -> None:
    worker = int(next(batches))
    assert worker != os.getpid()
    os.kill(worker, number)
    assert {int(next(batches)) for _ in range(20)} == {worker}


_LEAVES = """
import os, signal, sys
from omegaconf import OmegaConf
import train
from tests.test_training_stops import Workers
train.build = lambda _: Workers()
data = {"batch": 1, "workers": 1, "train": {}}
loader = train.build_loaders(OmegaConf.create({"data": data, "trainer": {"max_steps": 1000}}), 0)["train_dataloaders"]
batches = iter(loader)
print(int(next(batches)), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
raise SystemExit(7)
"""


def is_there(process: int) -> bool:
    """Whether it runs; one that ended and that nobody asked about does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("how", "code"), [("ends", 7), ("killed", -signal.SIGKILL)])
def test_workers_end_with_the_process_that_trains(tmp_path: Path, how: str, code: int) -> None:
    (tmp_path / "leaves.py").write_text(_LEAVES)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "leaves.py"), how], timeout=100, check=False, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == code
    worker, deadline = int(done.stdout), time.monotonic() + 30  # torch's workers look for their parent now and then
    while is_there(worker):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# SLURM.


def test_a_job_that_cannot_be_requeued_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    requeue()
    (line,) = caplog.messages
    assert "job 4711 is saved but not requeued" in line
    waited: list[bool] = []

    class Trainer:
        is_global_zero = True

        class strategy:
            barrier = staticmethod(lambda: waited.append(True))

    preemption = Preemption()
    preemption.leaving = int(signal.SIGUSR1)
    with pytest.raises(SystemExit) as end:
        preemption._leave(Trainer())  # type: ignore[arg-type]
    assert end.value.code == 128 + signal.SIGUSR1 and waited == [True]
