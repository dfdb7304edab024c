"""Terminal output of ``infer.py``: a progress bar, the plan, and a summary at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm_video.pipeline.job import Job, Outcome, Watch
from ldm_video.pipeline.restore import Restorer
from ldm_video.video_io import VideoInfo
from ldm_video.video_io.stills import is_image


def run_with_bar(run: Callable[[Watch], Outcome], shown: bool) -> Outcome:
    """Call ``run`` with a progress bar on a terminal; only one of several processes should be ``shown``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    hidden = not (console.is_terminal and shown)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=None, rate="")
        stage, began, base = "", 0.0, 0.0

        def progress(what: str, frames: float, total: int | None) -> None:
            nonlocal stage, began, base
            if what != stage:
                stage, began, base = what, time.monotonic(), frames
                bar.reset(task, description=what, total=total)
            seconds = time.monotonic() - began
            rate = f"{(frames - base) / seconds:.2f} frame/s" if seconds > 0 else ""
            bar.update(task, completed=int(frames), rate=rate)

        return run(Watch(progress, say=complain))


def complain(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)


def plan(info: VideoInfo, job: Job, restorer: Restorer) -> str:
    """Describe in a few lines what would be done."""
    settings, weights = restorer.settings, list(restorer.model.parameters())
    parameters, first = sum(p.numel() for p in weights) / 1e6, weights[0]
    return "\n".join(
        (
            f"input:    {info.summary()}",
            f"output:   {job.output} {job.size[1]}x{job.size[0]}",
            f"model:    {parameters:.1f}M parameters on {first.device} in {str(first.dtype).removeprefix('torch.')}",
            f"sampling: {settings.steps} steps, guidance {settings.guidance}, seed {settings.seed}",
            f"windows:  {settings.window} frames, {settings.overlap} shared; tile {settings.tile or 'none'}",
            f"average:  {settings.average or 'no'} neighbours on each side, along the motion",
            f"steady:   {settings.steady or 'no'} neighbours on each side, along the motion",
            f"fidelity: {settings.fidelity:.0%} of what is off the input is given back",
        )
    )


def describe_others(files: Sequence[Path]) -> str:
    """Say how many files of an archive are not videos, or nothing."""
    pictures = sum(map(is_image, files))
    counted = ((pictures, "picture"), (len(files) - pictures, "other file"))
    counts = [f"{count} {what}{'s' * (count != 1)}" for count, what in counted if count]
    return f"; skipped, not videos: {' and '.join(counts)}" if counts else ""


def summary(job: Job, outcome: Outcome) -> str:
    """Describe what was done, or what is left to other processes."""
    if outcome.pending:
        return outcome.pending
    rate = outcome.frames / max(outcome.seconds, 1e-9)
    size = f"{job.size[1]}x{job.size[0]}"
    line = f"{job.output}: {outcome.frames} frames {size} in {outcome.seconds:.1f} s ({rate:.2f} frame/s)"
    return line if job.compare is None else f"{line}\n{job.compare}: resized input | result"
