"""All methods on the same inputs: ``python -m eval.benchmark --suite configs/eval/suite.yaml --root CLIPS --out DIR``.

Builds the inputs of each track once, runs each method through the same door, scores with :mod:`eval.run`, and writes
``table.md`` and ``results.json``. What was made or scored before from the same inputs is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from eval.clips import ClipPair
from eval.inputs import BenchmarkInput, Track, build_inputs
from eval.methods import Method, find_methods
from eval.results import write_json
from eval.run import Plan, parse_metrics, score_pairs
from eval.scoring import Tools
from eval.table import markdown
from ldm_video.config.load import load_config
from ldm_video.core.errors import UserError, run_cli

BASELINE = "bicubic"
log = Console(stderr=True)


@dataclass(frozen=True)
class Suite:
    """What ``suite.yaml`` says."""

    tracks: tuple[Track, ...]
    scale: int
    seed: int
    frames: int | None
    metrics: str
    methods: tuple[str, ...]


def read_suite(config: DictConfig) -> Suite:
    """Check a suite's configuration. ``UserError`` names a key that is unknown, missing or of the wrong type."""
    content = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    try:
        tracks = tuple(Track(name=name, **values) for name, values in content.pop("tracks").items())
        metrics = ",".join(content.pop("metrics"))
        suite = Suite(tracks=tracks, metrics=metrics, methods=tuple(content.pop("methods")), **content)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the suite does not have the right keys: {error}") from error
    if BASELINE not in suite.methods:
        raise UserError(f"the suite's methods lack {BASELINE}; times and warp errors are read against it")
    return suite


def run_track(
    track: Track, inputs: list[BenchmarkInput], methods: list[Method], out: Path, plan: Plan
) -> dict[str, dict[str, Any]]:
    """Method name -> summary of its scores, with ``seconds`` a frame. Methods that only fill skip a holeless track."""
    results: dict[str, dict[str, Any]] = {}
    for method in methods:
        if method.fills and track.hole_area == 0:
            continue
        log.print(f"{track.name}: {method.name}")
        folder = out / "outputs" / track.name / method.name
        seconds = [run_once(method, given, folder) for given in inputs]
        pairs = [ClipPair(g.clip, folder / f"{g.clip}.mkv", g.ref, g.mask, g.lowres) for g in inputs]
        scores = Plan(plan.metrics, plan.tools, out / "scores" / track.name / method.name, plan.strict, plan.jobs)
        summary, failures = score_pairs(pairs, scores)
        if failures:
            raise UserError(f"{method.name} on {track.name}: {failures[0]}")
        frames = sum(given.frames for given in inputs)
        results[method.name] = summary | {"seconds": sum(seconds) / frames}
    return results


def run_once(method: Method, given: BenchmarkInput, folder: Path) -> float:
    """Make one output and return the seconds that it took, or those of an earlier run that still stands."""
    output, note = folder / f"{given.clip}.mkv", folder / f"{given.clip}.json"
    state = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in (given.lowres, given.mask) if p is not None]
    key = json.dumps([method.identity(), state, given.scale])
    if output.is_file() and note.is_file() and (record := json.loads(note.read_text()))["key"] == key:
        return float(record["seconds"])
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    method(given.lowres, given.mask, given.scale, output)
    seconds = time.perf_counter() - started
    write_json(note, {"key": key, "seconds": seconds, "frames": given.frames})
    return seconds


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m eval.benchmark", description="All methods on the same inputs.")
    parser.add_argument("--suite", default="configs/eval/suite.yaml", help="default: %(default)s")
    parser.add_argument("--root", required=True, help="folder of reference clips")
    parser.add_argument("--out", required=True, help="folder for inputs, outputs, scores and the table")
    parser.add_argument("--methods", help="comma-separated, instead of the suite's; bicubic is always run")
    parser.add_argument("--tracks", help="comma-separated, instead of all of the suite's")
    parser.add_argument("--model", help="model bundle for `ours` (default: the one that ships)")
    parser.add_argument("--infer", default="", help="more options for infer.py, as one string")
    parser.add_argument("--raft", help="torchvision RAFT weights for the warp errors (default: OpenCV's DIS)")
    parser.add_argument("--device", default="cpu", help="where the metrics' networks run")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="clips scored at a time")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the suite, as in frames=8")
    return parser.parse_args()


def _chosen_tracks(suite: Suite, names: str | None) -> list[Track]:
    if names is None:
        return list(suite.tracks)
    known = {track.name: track for track in suite.tracks}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise UserError(f"unknown track {unknown[0]!r}; the suite has {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def main() -> None:
    """The command line."""
    args = _arguments()
    suite = read_suite(load_config(args.suite, args.overrides))
    names = args.methods.split(",") if args.methods else list(suite.methods)
    methods = find_methods(list(dict.fromkeys([BASELINE, *names])), args.model, tuple(args.infer.split()))
    out, tools = Path(args.out), Tools(args.raft, args.device)
    plan = Plan(parse_metrics(suite.metrics), tools, out, jobs=args.jobs)
    results: dict[str, dict[str, Any]] = {}
    for track in _chosen_tracks(suite, args.tracks):
        inputs = build_inputs(args.root, out / "inputs", track, suite.scale, suite.seed, suite.frames)
        results[track.name] = run_track(track, inputs, methods, out, plan)
        write_json(out / "results.json", results)
    text = markdown(results, BASELINE)
    (out / "table.md").write_text(text)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
