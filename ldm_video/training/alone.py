"""One run at a time in an output folder: two would publish one another's weights."""

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
PATIENCE = 180.0  # seconds: as many as a job has to give way, see slurm/train.sbatch


@contextmanager
def alone(output: Path, found: dict[Path, int]) -> Iterator[None]:
    """Hold ``output``, which is made where it is missing, against other runs; for process 0 of a run.

    The system frees the lock when the process ends, however it does. A job that SLURM has put back into the queue waits
    for a moment: what has the folder may be its own last start.

    Args:
        found: :func:`~ldm_video.training.checkpoints.changes` of when the state to go on from was read.

    Raises ``UserError`` where another run has the folder, or had it since then.
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
