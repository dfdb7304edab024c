"""Break down the time of a run by stage: ``python -m eval.bench.pipeline`` with the options of ``infer.py``.

Decoding, the model and encoding run concurrently, each in its own thread, so their shares of the wall time add up to
more than 100 %. What counts is the model's share: if it is near 100 %, reading and writing cost nothing. The slow parts
of the model are listed separately, in the order in which they run; the rest of it is evidence, hole filling, noise and
colour.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ldm_video.core.errors import run_cli
from ldm_video.pipeline import restore
from ldm_video.pipeline.arguments import DEFAULTS, parse_arguments
from ldm_video.pipeline.job import Watch, run_job
from ldm_video.pipeline.settings import read_config
from ldm_video.restoration import prepare

ROWS = {
    "decode": "decode",
    "model": "model",
    "average": "  of it: input averaged along the motion",
    "sampler": "  of it: sampler",
    "codec": "  of it: codec",
    "steady": "  of it: output blended along the motion",
    "finish": "  of it: codec's finish",
    "encode": "encode",
}


class Stopwatch:
    """Accumulated seconds by name. Each name must be used by one thread only."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a timed ``function``. It waits for the GPU, so that its work is not counted for the next function."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                result = function(*args, **kwargs)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                return result

        return timed


def main() -> None:
    """Run ``infer.py``'s work with a stopwatch and print the table."""
    arguments = parse_arguments()
    _, job, restorer, role = prepare(arguments, read_config(arguments, DEFAULTS))
    model, watch = restorer.model, Stopwatch()
    for owner, name, row in (
        (restore, "average_along_motion", "average"),
        (model, "predict", "sampler"),
        (model.codec, "decode", "codec"),
        (restore, "steady", "steady"),
        (model.codec, "finish", "finish"),
    ):
        setattr(owner, name, watch.around(row, getattr(owner, name)))
    outcome = run_job(job, restorer, Watch(timed=watch), role)
    print_table(watch, outcome.frames, outcome.seconds)


def print_table(watch: Stopwatch, frames: int, wall: float) -> None:
    """Print milliseconds per frame and share of the wall time, a row per stage."""
    table = Table(title=f"{frames} frames in {wall:.1f} s: {frames / wall:.2f} frame/s")
    for heading in ("stage", "ms a frame", "% of wall time"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, label in ROWS.items():
        seconds = watch.seconds[name]
        table.add_row(label, f"{1000 * seconds / max(frames, 1):.1f}", f"{100 * seconds / wall:.1f}")
    Console().print(table)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_cli(main)
