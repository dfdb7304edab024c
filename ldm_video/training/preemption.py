"""Give way when the cluster wants the machine back: finish the step, save, return the job to the queue, end.

Lightning 2.6 saves inside the signal handler, which may strike in the middle of a backward pass, and its processes can
wait for one another for ever (Lightning#21406, #20806). Here the handler only takes a note; the processes agree on it
between two steps, so that what is saved is a state that an uninterrupted run goes through too.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from ldm_video.training.checkpoints import step_ended

log = logging.getLogger(__name__)

REQUEUE = signal.SIGUSR1  # SLURM sends it before the time limit: `#SBATCH --signal=USR1@120`
# SIGTERM comes before a preemption, which requeues by itself, and with `scancel`, after which nothing must come back.
SIGNALS = (REQUEUE, signal.SIGTERM)


class Preemption(pl.Callback):
    """On SIGUSR1 or SIGTERM: write ``last.ckpt`` after the step that is under way, and end with exit code 128 + signal.

    After SIGUSR1 a SLURM job is put back into the queue first; started again, it goes on where it stopped. It is
    enough that one process gets the signal. Called after weight averaging and before Lightning's own checkpoint.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the signal
        self.leaving = 0  # the same, once all processes know of it and the checkpoint is written

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in SIGNALS:  # in the place of Lightning's handlers; it puts back those from before the fit
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.received = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not step_ended(trainer, batch_idx):
            return  # gradients that are being gathered are in no checkpoint
        if not trainer.strategy.reduce_boolean_decision(self.received > 0, all=False):
            return
        received = torch.tensor(self.received, device=pl_module.device)
        self.leaving = int(trainer.strategy.reduce(received, reduce_op="max"))
        checkpoint = trainer.checkpoint_callback
        if isinstance(checkpoint, ModelCheckpoint):
            path = Path(str(checkpoint.dirpath)) / "last.ckpt"
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                name = signal.Signals(self.leaving).name
                log.info("%s: saved %s at step %d", name, path, trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._leave(trainer)  # not at the end of the batch before: its metrics were not logged yet

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> None:
        if not self.leaving:
            return
        if self.leaving == REQUEUE and trainer.is_global_zero:
            requeue()
        trainer.strategy.barrier()  # the first process to end may take the others down with it
        raise SystemExit(128 + self.leaving)


def ignore_signals(worker: int = 0) -> None:
    """For a process that loads data: leave the signals to the one that trains, which ends its workers itself.

    A cluster signals a whole group of processes. A worker that died of it would end the run before its state is saved.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """At the end of a process: kill the workers that are left, of which none would mind Python's own SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes the end of a worker for an accident
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def requeue() -> None:
    """Put the SLURM job that this process belongs to back into the queue; without SLURM, nothing.

    A job that SLURM does not requeue is a warning: its state is saved, and all processes have yet to end together.
    """
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        log.warning("job %s is saved but not requeued (scontrol: %s); submit it again", job, error.strerror)
        return
    if result.returncode:
        log.warning("SLURM does not requeue job %s: %s", job, result.stderr.strip())
    else:
        log.info("job %s is back in the queue", job)
