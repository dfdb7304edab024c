"""Exclusive use of an output folder: two runs in one folder would publish each other's weights."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm_video.core.errors import UserError
from ldm_video.core.locks import locked
from ldm_video.training.checkpoints import changes

LOCK = ".run.lock"
PATIENCE = 180.0  # seconds; the time a job has to shut down, see slurm/train.sbatch


@contextmanager
def alone(output: Path, found: dict[Path, int]) -> Iterator[None]:
    """Lock ``output``, created if missing, against other runs; for process 0 of a run.

    The operating system releases the lock however the process ends. A job requeued by SLURM waits up to ``PATIENCE``
    seconds, because its own previous process may still hold the folder.

    Args:
        found: result of :func:`~ldm_video.training.checkpoints.changes` when the state to resume from was read.

    Raises ``UserError`` if another run holds the folder or has written to it since then.
    """
    output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + (PATIENCE if int(os.environ.get("SLURM_RESTART_COUNT") or 0) else 0)
    while True:
        with locked(output / LOCK, wait=False) as mine:
            if mine:
                if changes(output / "checkpoints") != found:
                    raise UserError(f"another run has just written to {output}; run the same command again")
                yield
                return
        if time.monotonic() >= deadline:
            raise UserError(f"another run is at work in {output}; wait for its end or give another output=FOLDER")
        time.sleep(1)
