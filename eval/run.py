"""Score clips against references: ``python -m eval.run --pred DIR_OR_FILE --ref DIR_OR_FILE [--out DIR]``.

Independent of any model: reads folders of clips, folders of frames or files, and matches them by name. Writes
``frames/CLIP.csv``, ``clips/CLIP.json`` and ``summary.json``. Earlier scores of the same inputs are kept. A clip with
missing frames or a mismatched size is reported and left out, the others are scored, and the exit code is 2. With
``--strict`` the first such clip, or a metric without its weights, ends the run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from eval.clips import ClipPair, match_clips
from eval.columns import REFERENCE, describe
from eval.metrics.seams import SeamBorders
from eval.results import fingerprint, load_clip, save_clip, scored_by, summarise, write_json
from eval.scoring import (
    DEFAULT_METRICS,
    LOWRES_CONSISTENCY,
    METRIC_NAMES,
    SEAM_ERROR,
    MetricChoice,
    Tools,
    score_clip,
    without_weights,
)
from eval.workers import end_with_parent
from ldm_video.core.errors import ArgumentParser, UserError, run_cli

if TYPE_CHECKING:
    from multiprocessing.queues import Queue


_DEFAULT_NAMES = ",".join(DEFAULT_METRICS)


@dataclass(frozen=True)
class Plan:
    """What to compute for every pair, and where to write it; ``pred``: path given for the method's clips."""

    metrics: tuple[MetricChoice, ...]
    tools: Tools
    out: Path
    strict: bool = False
    jobs: int = 1
    pred: Path | None = None


def score_pairs(pairs: list[ClipPair], plan: Plan, show: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Score all pairs, writing each when it is done, then the summary.

    Returns the summary and a line for each clip that could not be scored.
    """
    missing = without_weights(plan.metrics, plan.tools)
    if plan.strict and missing:  # fail before anything is read
        raise UserError(next(iter(missing.values())))
    records: dict[str, dict[str, Any]] = {}
    todo: list[tuple[ClipPair, str]] = []
    for pair in pairs:
        made_by = fingerprint(pair, plan.metrics, plan.tools, missing)
        record = load_clip(plan.out, pair.name, made_by)
        if record is None:
            todo.append((pair, made_by))
        else:
            records[pair.name] = record
    failures: list[str] = []
    with _progress(len(pairs), len(records), show) as advance:
        for pair, outcome in _score_all(todo, plan, advance):
            if isinstance(outcome, str):
                failures.append(outcome)
            else:
                records[pair.name] = outcome
    scored = [pair.name for pair in pairs if pair.name in records]
    summary = summarise(records[name] for name in scored)
    pred = {"pred": str(plan.pred.resolve())} if plan.pred else {}
    facts = pred | {"names": scored, "failed": failures, "scored_by": scored_by(plan.tools.device)}
    write_json(plan.out / "summary.json", summary | facts)
    return summary, failures


def _score_all(
    todo: list[tuple[ClipPair, str]], plan: Plan, advance: Callable[[int, int], None]
) -> Iterator[tuple[ClipPair, dict[str, Any] | str]]:
    """Yield outcomes as they arrive: a record, or an error message."""
    jobs = min(plan.jobs, len(todo))
    if jobs <= 1:
        for pair, made_by in todo:
            outcome = _score_one(pair, made_by, plan, lambda: advance(0, 1))
            advance(1, 0)
            yield pair, outcome
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe with torch's threads
    ticks = context.Queue()
    with ProcessPoolExecutor(jobs, context, initializer=_begin_worker, initargs=(ticks,)) as pool:
        waiting = {pool.submit(_score_in_worker, pair, made_by, plan): pair for pair, made_by in todo}
        try:
            while waiting:
                advance(0, _count_ticks(ticks))
                for future in [future for future in waiting if future.done()]:
                    advance(1, 0)
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that scored clips was killed, perhaps for want of memory; try again with --jobs 1, "
                "what is scored is kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _score_one(pair: ClipPair, made_by: str, plan: Plan, tick: Callable[[], None]) -> dict[str, Any] | str:
    try:
        return save_clip(plan.out, pair, score_clip(pair, plan.metrics, plan.tools, tick), made_by)
    except UserError as error:
        if plan.strict:
            raise
        return str(error)


_ticks: Queue[int]  # set in worker processes


def _score_in_worker(pair: ClipPair, made_by: str, plan: Plan) -> dict[str, Any] | str:
    return _score_one(pair, made_by, plan, lambda: _ticks.put(1))


def _begin_worker(ticks: Queue[int]) -> None:
    import torch

    global _ticks
    _ticks = ticks
    end_with_parent()
    torch.set_num_threads(1)


def _count_ticks(ticks: Queue[int]) -> int:
    """Return the number of frames scored since the last call; waits at most 0.2 s for the first."""
    count = 0
    try:
        count += ticks.get(timeout=0.2)
        while True:
            count += ticks.get_nowait()
    except queue.Empty:
        return count


@contextmanager
def _progress(clips: int, done: int, show: bool) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[frames]} frames"))
    with Progress(*columns, TimeElapsedColumn(), disable=not show, console=Console(stderr=True)) as progress:
        task = progress.add_task("clips", total=clips, completed=done, frames=0)

        def advance(more_clips: int, more_frames: int) -> None:
            frames = progress.tasks[0].fields["frames"] + more_frames
            progress.update(task, advance=more_clips, frames=frames)

        yield advance


def parse_metrics(text: str) -> tuple[MetricChoice, ...]:
    """Parse ``"psnr_y,dists/8"`` or ``"all"``. ``UserError`` for an unknown name."""
    names = METRIC_NAMES if text == "all" else text.split(",")
    try:
        return tuple(dict.fromkeys(MetricChoice.parse(name) for name in names))
    except ValueError as error:
        raise UserError(f"--metrics: {error}") from error


def read_seams(path: str | None) -> SeamBorders | None:
    """Read a method's window and tile borders from JSON: ``{"frames": [...], "rows": [...], "columns": [...]}``.

    Returns None for None. Raises ``UserError`` for an unreadable file or other content.
    """
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text())
        return SeamBorders(**{key: tuple(int(n) for n in numbers) for key, numbers in content.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"--seams {path}: expected JSON with lists frames, rows, columns ({error})") from error


def refuse_other_scores(out: Path, pred: Path) -> None:
    """Raise ``UserError`` if ``out`` holds scores of another ``--pred``: clips of the same name would replace them."""
    try:
        of = json.loads((out / "summary.json").read_text())["pred"]
    except (OSError, ValueError, TypeError, KeyError):  # no summary, or one without this key
        return
    if of != str(pred.resolve()):
        raise UserError(f"{out} holds the scores of {of}; choose another --out for those of {pred}")


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print a table: column and direction of better values, mean, interval, gap to the reference; units as in files."""
    names = {c: c + ("" if c.endswith(REFERENCE) else describe(c).arrow) for c in summary["scores"]}
    metric = Column("metric", min_width=max(map(len, names.values()), default=0))  # never truncate a name
    table = Table(metric, "mean", "95 % interval", "|score - reference's| ↓", title=f"{summary['clips']} clips")
    for column, row in summary["scores"].items():
        interval = "" if row["interval"] is None else "{:.4g} … {:.4g}".format(*row["interval"])
        gap = f"{row['gap']:.4g}" if "gap" in row else ""
        table.add_row(names[column].replace("[", r"\["), f"{row['mean']:.4g}", interval, gap)
    console.print(table)
    for name, reason in summary["unavailable"].items():
        console.print(f"{name} is not available: {reason}", markup=False)


def _arguments() -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m eval.run", description="Score clips against their references.")
    parser.add_argument("--pred", required=True, help="what a method made: a clip, or a folder of clips")
    parser.add_argument("--ref", required=True, help="the references, with the same names")
    parser.add_argument("--mask", help="holes (white): scores are also taken inside, in a band around, and outside")
    parser.add_argument("--lowres", help="what the method was given, for lowres_consistency")
    parser.add_argument(
        "--metrics",
        default=_DEFAULT_NAMES,
        help=f"comma-separated, or all, of {', '.join(METRIC_NAMES)}; dists/8: every 8th frame (default: %(default)s)",
    )
    parser.add_argument("--out", default="eval_out", help="folder for CSV and JSON (default: %(default)s)")
    parser.add_argument("--raft", help="torchvision RAFT weights for the warp errors (default: OpenCV's DIS)")
    parser.add_argument("--seams", help="JSON with the method's window and tile borders, for seam_error")
    parser.add_argument("--device", default="cpu", help="where the networks run: cpu or cuda")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="clips scored at a time")
    parser.add_argument("--strict", action="store_true", help="stop at the first clip or metric that cannot be scored")
    parser.add_argument("--wandb", metavar="PROJECT", help="log the summary to this Weights & Biases project")
    return parser.parse_args()


def _log_to_wandb(project: str, summary: dict[str, Any]) -> None:
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs the wandb package: pip install wandb") from error
    with wandb.init(project=project, job_type="eval") as run:
        run.summary.update({column: row["mean"] for column, row in summary["scores"].items()})


def main() -> None:
    """Run the command line."""
    args = _arguments()
    if args.jobs < 1:
        raise UserError("--jobs must be 1 or more")
    tools = Tools(args.raft, args.device, read_seams(args.seams))
    plan = Plan(parse_metrics(args.metrics), tools, Path(args.out), args.strict, args.jobs, Path(args.pred))
    named = set() if args.metrics in ("all", _DEFAULT_NAMES) else {choice.name for choice in plan.metrics}
    if SEAM_ERROR in named and tools.seams is None:
        raise UserError("seam_error needs --seams FILE with the method's window and tile borders")
    if LOWRES_CONSISTENCY in named and args.lowres is None:
        raise UserError("lowres_consistency needs --lowres with what the method was given")
    refuse_other_scores(plan.out, Path(args.pred))
    pairs, missing = match_clips(args.pred, args.ref, args.mask, args.lowres)
    if (missing and args.strict) or not pairs:
        raise UserError(missing[0] if missing else "no clips to score")
    summary, failures = score_pairs(pairs, plan)
    print_summary(summary, Console())
    if args.wandb:
        _log_to_wandb(args.wandb, summary)
    problems = missing + failures
    if problems:
        raise UserError(f"{len(problems)} of {len(pairs) + len(missing)} clips not scored: {'; '.join(problems)}")


if __name__ == "__main__":
    run_cli(main)
