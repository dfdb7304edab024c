"""Checkpoints that survive killed processes, power cuts and full disks.

Guarantees, on a local file system and on NFS as far as it implements POSIX rename:

- A name such as ``last.ckpt`` refers to a complete checkpoint at any time: the old one until the new one is fully on
  disk (``fsync``), then, by atomic rename, the new one. ``kill -9`` during a save leaves a hidden
  ``.NAME.xxxxxxxx.part.ckpt`` and its lock; nothing reads them, and the next save removes them.
- Lightning writes each checkpoint under two names, first ``epoch=E-step=S.ckpt`` and then ``last.ckpt``, and only then
  removes that of the previous step. So from the second save on there are always two complete files.
- :func:`last_good` takes the newest file that can be read in full. Damaged ones (a disk that lies about ``fsync``, a
  truncated copy) are logged and skipped.
- A full disk or an unwritable folder ends the run with a one-line error; existing checkpoints stay intact.
"""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from ldm_video.core.errors import UserError
from ldm_video.core.files import DISK_FULL, atomic_path, sweep

log = logging.getLogger(__name__)

_DAMAGED = (zipfile.BadZipFile, RuntimeError, EOFError, pickle.UnpicklingError, OSError, KeyError)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write Lightning's checkpoints to a temporary file in the same folder, sync it, and rename it atomically.

    Lightning 2.6 writes to the system's temporary folder and moves the file. Across file systems, that is a copy over
    the old checkpoint, which a kill leaves incomplete. It also holds a second copy of the whole file in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint``. Raises ``UserError`` when ``path`` cannot be written or the disk is full."""
        path = Path(path)
        sweep(path.parent)  # remove leftovers of every name: the one of a given step may never be written again
        # Unbuffered, so that an OS error is raised by torch.save and not on closing the file.
        with atomic_path(path) as temporary, open(temporary, "wb", buffering=0) as file:
            _save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load the checkpoint ``path`` memory-mapped, like :func:`read_checkpoint`; ``map_location`` is ignored."""
        return _mapped(Path(path), weights_only)


class BetweenSteps(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, restricted to saving at the end of an optimizer step.

    The step saved last is not part of a checkpoint. After a resume, Lightning would save the same step again at the
    first batch of the next step, and the gradients accumulated so far would be lost at the next interruption.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if step_ended(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def step_ended(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether the optimizer stepped after this batch: the last of an accumulation window or of an epoch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def last_good(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the newest intact checkpoint of ``folder`` and its content; ``(None, {})`` if there is none at all.

    Raises ``UserError`` when all of them are damaged.
    """
    found = _checkpoints(folder)
    # Newest first; last.ckpt wins a tie. By time, not by step: a restarted run counts from 0 again.
    found.sort(key=lambda path: (path.stat().st_mtime_ns, path.stem == "last"), reverse=True)
    for path in found:
        try:
            return path, read_checkpoint(path)
        except _DAMAGED as error:
            log.warning("%s is damaged and was skipped (%s)", path, str(error).partition(". ")[0])
    if found:
        raise UserError(f"no checkpoint in {folder} can be read; use --restart to start over")
    return None, {}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint on the CPU. It is unpickled, so use this only for checkpoints written by this very run.

    The tensors are memory-mapped copy-on-write: unused ones are never loaded, processes on the same machine share the
    others, and writing to them does not change the file.

    Raises what ``torch.load`` raises, and ``BadZipFile`` if a check sum is wrong.
    """
    _check_sums(path)
    return _mapped(path, weights_only=False)


def begin_anew(folder: Path) -> None:
    """Remove the previous run's checkpoints: a run stopped before its first save must not resume from them."""
    for path in _checkpoints(folder):
        path.unlink()


def changes(folder: Path) -> dict[Path, int]:
    """Return the checkpoints of ``folder`` and their modification times (ns), to detect writes by another run."""
    times = {}
    for path in _checkpoints(folder):
        with suppress(FileNotFoundError):  # another run has just removed it
            times[path] = path.stat().st_mtime_ns
    return times


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.ckpt") if not path.name.startswith(".")]


@contextmanager
def full_disk_explained(folder: str | Path) -> Iterator[None]:
    """Turn a full-disk error from any source (a logger, Lightning) into a ``UserError`` that names ``folder``."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"no space left on the disk of {folder}; free some space and run the same command again: it goes on from "
            "the last checkpoint"
        ) from error


def _save(checkpoint: Mapping[str, Any], file: BinaryIO) -> None:
    """Call ``torch.save``, but raise an OS error as such and not as the archive error that it causes."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise cause from error


def _mapped(path: Path, weights_only: bool | None) -> dict[str, Any]:
    """Load memory-mapped. Safe during saves: a checkpoint is never overwritten in place, only replaced by rename."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    return state


def _check_sums(path: Path) -> None:
    """Raise ``BadZipFile`` if a check sum is wrong, which ``torch.load`` does not test."""
    with zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the check sum of {bad} is wrong")
