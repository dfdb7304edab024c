"""Handle preemption by the cluster: finish the step, save a checkpoint, requeue the job, exit.

Lightning 2.6 saves inside the signal handler, possibly in the middle of a backward pass, and its processes can deadlock
(Lightning#21406, #20806). Here the handler only sets a flag, and the processes synchronise it between two steps. So
the saved state is one that an uninterrupted run passes through too.
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
# SIGTERM precedes a preemption, after which SLURM requeues the job, or comes from `scancel`, which must not requeue.
SIGNALS = (REQUEUE, signal.SIGTERM)


class Preemption(pl.Callback):
    """On SIGUSR1 or SIGTERM, write ``last.ckpt`` after the current step and exit with code 128 + signal.

    After SIGUSR1, a SLURM job is requeued first; when restarted, it resumes where it stopped. It is enough that one
    process gets the signal. This callback must run after weight averaging and before Lightning's own checkpoint.
    """

    def __init__(self) -> None:
        self.received = 0  # signal number
        self.leaving = 0  # the same, once all processes have agreed on it and the checkpoint is written

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in SIGNALS:  # replaces Lightning's handlers; Lightning restores those from before the fit
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.received = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not step_ended(trainer, batch_idx):
            return  # accumulated gradients are not part of a checkpoint
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
        self._leave(trainer)  # not at the end of the previous batch, whose metrics were not logged yet

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> None:
        if not self.leaving:
            return
        if self.leaving == REQUEUE and trainer.is_global_zero:
            requeue()
        trainer.strategy.barrier()  # the first process to exit may take the others down
        raise SystemExit(128 + self.leaving)


def ignore_signals(worker: int = 0) -> None:
    """Ignore the signals in a data worker; the training process handles them and ends its workers itself.

    A cluster signals the whole process group. A worker that died from it would end the run before its state is saved.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """Kill the remaining workers when the process exits, because they ignore Python's own SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler treats the end of a worker as a crash
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def requeue() -> None:
    """Requeue the SLURM job that this process belongs to; a no-op without SLURM.

    A failure is only logged: the state is saved, and all processes still have to exit together.
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
