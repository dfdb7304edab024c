"""Checkpoints that a killed process, a power cut or a full disk cannot spoil.

What is guaranteed, on a local file system and on NFS as far as it keeps POSIX's rename:

- A name such as ``last.ckpt`` holds a whole checkpoint at every moment: the old one until the new one is on the disk
  in full (``fsync``), then, in one step (``rename``), the new one. ``kill -9`` while a checkpoint is being written
  leaves a hidden ``.NAME.xxxxxxxx.part.ckpt`` and its lock beside it, which the next save removes and nothing ever
  reads.
- Lightning writes each checkpoint under two names, ``epoch=E-step=S.ckpt`` and then ``last.ckpt``, and removes the
  one of the step before only after that: from the second save on there are always two whole files.
- :func:`last_good` takes the newest file that can be read in full. Damaged ones (a disk that lies about ``fsync``, a
  copy cut short) are named in the log and passed over.
- A disk that is full, or a folder that cannot be written, ends the run with one line; the checkpoints that were there
  stay as they are.
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
    """Lightning's checkpoint files, written beside their place, synced, and renamed into it.

    Lightning 2.6 writes to the system's temporary folder and moves the file: across file systems that is a copy onto
    the old checkpoint, which a kill leaves half done. It also holds the whole file in memory once more.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint``. Raises ``UserError`` where the place cannot be written or the disk is full."""
        path = Path(path)
        sweep(path.parent)  # of every name: a step's checkpoint need not be written again
        # Without a buffer the system's error comes out of torch.save and not out of the file's closing.
        with atomic_path(path) as temporary, open(temporary, "wb", buffering=0) as file:
            _save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What the checkpoint ``path`` holds, mapped as :func:`read_checkpoint` does it; ``map_location`` as there."""
        return _mapped(Path(path), weights_only)


class BetweenSteps(ModelCheckpoint):
    """Lightning's callback, which saves only where a step has ended.

    What it saved last is in no checkpoint: after a resume it would save the same step once more, at the first of the
    next step's batches, and gradients that are being gathered would be lost with the next stop.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if step_ended(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def step_ended(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimizer made its step after this batch: the last of those that it gathers, or of an epoch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def last_good(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The newest whole checkpoint of ``folder`` and what it holds; ``(None, {})`` where there is none at all.

    Raises ``UserError`` when every one of them is damaged.
    """
    found = _checkpoints(folder)
    # Of two as new as one another, last.ckpt. The time decides, not the step: a restarted run counts anew.
    found.sort(key=lambda path: (path.stat().st_mtime_ns, path.stem == "last"), reverse=True)
    for path in found:
        try:
            return path, read_checkpoint(path)
        except _DAMAGED as error:
            log.warning("%s is damaged and is passed over (%s)", path, str(error).partition(". ")[0])
    if found:
        raise UserError(f"no checkpoint in {folder} can be read; use --restart to begin anew")
    return None, {}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. Pickles: only for checkpoints that this very run wrote.

    Its tensors are views of the file: of what nobody looks at nothing is loaded, and the processes of a machine share
    the rest. They may be written to, which changes no file.

    Raises what ``torch.load`` does, and ``BadZipFile`` where bytes are not those that were written.
    """
    _check_sums(path)
    return _mapped(path, weights_only=False)


def begin_anew(folder: Path) -> None:
    """Remove the checkpoints of the run before: one that stops before its own first must not go on from them."""
    for path in _checkpoints(folder):
        path.unlink()


def changes(folder: Path) -> dict[Path, int]:
    """The checkpoints of ``folder`` and when each was written: equal where nobody has written in between."""
    times = {}
    for path in _checkpoints(folder):
        with suppress(FileNotFoundError):  # a run that is at work has just removed it
            times[path] = path.stat().st_mtime_ns
    return times


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.ckpt") if not path.name.startswith(".")]


@contextmanager
def full_disk_explained(folder: str | Path) -> Iterator[None]:
    """Turn a full disk, whoever met it (a logger, Lightning), into one line that names ``folder``."""
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
    """``torch.save``, but an error of the system is raised as such and not as a complaint about the archive."""
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
    """Safe while others save: the file is never written in place, a new checkpoint of its name is another file."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    return state


def _check_sums(path: Path) -> None:
    """Raise ``BadZipFile`` where the bytes are not those that were written: ``torch.load`` does not look."""
    with zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the check sum of {bad} is wrong")
