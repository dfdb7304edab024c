"""Run all methods on the same inputs: ``python -m eval.benchmark --suite SUITE.yaml --root CLIPS --out DIR``.

Builds the inputs of each track once, runs every method through the same interface, scores with :mod:`eval.run`, and
writes ``table.md`` and ``results.json``. Outputs and scores of earlier runs on the same inputs are kept, including
those of tracks and methods that this run leaves out.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from eval.clips import ClipPair, find_clips
from eval.columns import BASELINE
from eval.file_states import file_states
from eval.holes import OBJECT
from eval.inputs import FORMAT, BenchmarkInput, Track, build_inputs
from eval.kept import KEY, in_order, inputs_key, read_kept
from eval.measure import Cost, Worker
from eval.methods import Method, Settings, find_methods, infer_options
from eval.results import recipe, write_json
from eval.run import Plan, parse_metrics, score_pairs
from eval.scoring import Tools
from eval.table import markdown
from ldm_video.config.load import load_config
from ldm_video.core.checks import whole
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.core.files import atomic_path

log = Console(stderr=True)


@dataclass(frozen=True)
class Suite:
    """Contents of ``suite.yaml``. ``frames``: limit per clip, None for all; ``metrics``: comma-separated names."""

    tracks: tuple[Track, ...]
    scale: int
    seed: int
    frames: int | None
    metrics: str
    methods: tuple[str, ...]

    def __post_init__(self) -> None:
        whole("scale", self.scale, 1)
        whole("seed", self.seed, 0)
        if self.frames is not None:
            whole("frames", self.frames, 1)


def read_suite(config: DictConfig) -> Suite:
    """Validate a suite's configuration. ``UserError`` names a key that is unknown, missing or of the wrong type."""
    content = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    try:
        metrics, methods = (_names(key, content.pop(key)) for key in ("metrics", "methods"))
        tracks = tuple(_track(name, values) for name, values in content.pop("tracks").items())
        suite = Suite(tracks=tracks, metrics=",".join(metrics), methods=methods, **content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"the suite does not have the right keys and values: {error}") from error
    if BASELINE not in suite.methods:
        raise UserError(f"the suite's methods lack {BASELINE}; times and warp errors are read against it")
    return suite


def _names(key: str, value: Any) -> tuple[str, ...]:
    example = {"metrics": "psnr,lpips", "methods": "bicubic,ours"}[key]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{key} is {value!r}; give a list of names, as in {key}=[{example}]")
    return tuple(value)


def _track(name: str, values: Any) -> Track:
    if not isinstance(values, dict):
        raise UserError(f"tracks.{name} is {values!r}; give its options, such as tracks.{name}.crf=23")
    return Track(name=name, **values)


def run_track(
    track: Track, inputs: list[BenchmarkInput], methods: list[Method], out: Path, plan: Plan
) -> dict[str, dict[str, Any]]:
    """Run and score every method on a track.

    Methods that only fill are skipped on a track without holes. Each interlaced low-res frame shows two moments, so the
    output's consistency with it is not scored.

    Returns method name -> summary of its scores, with mean ``seconds`` per frame and the largest ``peak_bytes`` of any
    clip. Raises ``UserError`` if a clip cannot be scored.
    """
    results: dict[str, dict[str, Any]] = {}
    for method in methods:
        if method.fills and not track.has_hole:
            continue
        log.print(f"{track.name}: {method.name}", markup=False)
        folder = out / "outputs" / track.name / method.name
        with Worker() as worker:
            costs = [run_once(method, given, folder, worker) for given in inputs]
        pairs = [
            ClipPair(g.clip, folder / f"{g.clip}.mkv", g.ref, g.mask, None if track.interlaced else g.lowres)
            for g in inputs
        ]
        scored = replace(plan, out=out / "scores" / track.name / method.name, pred=folder)
        summary, failures = score_pairs(pairs, scored)
        if failures:
            raise UserError(f"{method.name} on {track.name}: {failures[0]}")
        frames = sum(given.frames for given in inputs)
        seconds = sum(cost.seconds for cost in costs) / frames
        results[method.name] = summary | {"seconds": seconds, "peak_bytes": max(cost.peak_bytes for cost in costs)}
    return results


def run_once(method: Method, given: BenchmarkInput, folder: Path, worker: Worker) -> Cost:
    """Write one output and return its cost; an up-to-date output of an earlier run is kept, with its recorded cost."""
    output, note = folder / f"{given.clip}.mkv", folder / f"{given.clip}.json"
    state = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in (given.lowres, given.mask) if p is not None]
    key = json.dumps([method.identity(), state, given.scale])
    if output.is_file() and (cost := _recorded_cost(note, key)) is not None:
        return cost
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)  # it describes an output that is about to be replaced
    cost = worker(method, given.lowres, given.mask, given.scale, output)
    write_json(note, {"key": key, **asdict(cost), "frames": given.frames})
    return cost


def _recorded_cost(note: Path, key: str) -> Cost | None:
    try:
        record = json.loads(note.read_text())
        return Cost(record["seconds"], record["peak_bytes"]) if record["key"] == key else None
    except (OSError, ValueError, KeyError):
        return None


def choose_methods(suite: Suite, names: str | None, settings: Settings) -> tuple[list[Method], list[str]]:
    """Return the methods that can run here, the baseline first, and a line for each of the suite's that cannot.

    ``names`` (comma-separated) replaces the suite's methods; ``UserError`` if one of them cannot run.
    """
    wanted = names.split(",") if names else list(suite.methods)
    methods, left_out = [], []
    for method in find_methods(list(dict.fromkeys([BASELINE, *wanted])), settings):
        reason = method.missing(suite.scale)
        if reason is None:
            methods.append(method)
        elif names:
            raise UserError(reason)
        else:
            left_out.append(f"{method.name} is left out: {reason}")
    return methods, left_out


def _arguments() -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m eval.benchmark", description="All methods on the same inputs.")
    parser.add_argument("--suite", default="configs/eval/suite.yaml", help="default: %(default)s")
    parser.add_argument("--root", required=True, help="folder of reference clips")
    parser.add_argument("--out", required=True, help="folder for inputs, outputs, scores and the table")
    parser.add_argument("--methods", help="comma-separated, instead of the suite's; bicubic is always run")
    parser.add_argument("--tracks", help="comma-separated, instead of all of the suite's")
    parser.add_argument("--model", help="model bundle for `ours` (default: the one that ships)")
    parser.add_argument("--infer", default="", help="more options for infer.py, as one string")
    parser.add_argument("--masks", type=Path, help="folder of CLIP/%%05d.png, white = object, for object tracks")
    parser.add_argument("--migan", type=Path, help="ONNX file of the MI-GAN pipeline, for `migan`")
    parser.add_argument("--sd-upscaler", type=Path, help="diffusers checkpoint folder for `sd_upscaler`")
    parser.add_argument("--sd-inpaint", type=Path, help="diffusers checkpoint folder for `sd_inpaint`")
    parser.add_argument("--raft", help="torchvision RAFT weights for the warp errors (default: OpenCV's DIS)")
    parser.add_argument("--device", default="cpu", help="where all networks run (default: %(default)s)")
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
    """Run the command line."""
    args = _arguments()
    whole("--jobs", args.jobs, 1)
    suite = read_suite(load_config(args.suite, args.overrides))
    options = infer_options("--infer", args.infer)
    settings = Settings(args.model, options, args.migan, args.sd_upscaler, args.sd_inpaint, args.device)
    methods, notes = choose_methods(suite, args.methods, settings)
    out, tools = Path(args.out), Tools(args.raft, args.device)
    plan = Plan(parse_metrics(suite.metrics), tools, out, jobs=args.jobs)
    keys = {track.name: _inputs_key(track, suite, args.root, args.masks, plan) for track in suite.tracks}
    results, replaced = read_kept(out / "results.json", keys)
    order = [track.name for track in suite.tracks], [BASELINE, *suite.methods]
    for track in _chosen_tracks(suite, args.tracks):
        inputs = build_inputs(args.root, out / "inputs", track, suite.scale, suite.seed, suite.frames, args.masks)
        notes += _absent_clips(track, args.root, inputs, args.masks)
        if inputs:
            measured = run_track(track, inputs, methods, out, plan)
            marked = {name: summary | {KEY: keys[track.name]} for name, summary in measured.items()}
            if replaced:
                log.print(f"{out}/results.json: scores of other inputs replaced: {', '.join(replaced)}", markup=False)
                replaced = []
            results = in_order(results | {track.name: results.get(track.name, {}) | marked}, *order)
            write_json(out / "results.json", results)
    for note in notes:
        log.print(note, markup=False, highlight=False, soft_wrap=True)
    text = "\n".join([markdown(results, BASELINE), *(f"{note}\n" for note in notes)])
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _inputs_key(track: Track, suite: Suite, root: str, masks: Path | None, plan: Plan) -> str:
    """Return a key of what a track's scores depend on: its recipe, clips, masks, metrics and their tools."""
    clips = {name: file_states(path) for name, path in find_clips(root).items()}
    objects = file_states(masks) if track.hole == OBJECT and masks is not None and masks.exists() else None
    raft = file_states(Path(plan.tools.raft)) if plan.tools.raft else None
    scored = recipe(plan.metrics, plan.tools)
    return inputs_key(FORMAT, asdict(track), suite.scale, suite.seed, suite.frames, clips, objects, scored, raft)


def _absent_clips(track: Track, root: str, inputs: list[BenchmarkInput], masks: Path | None) -> list[str]:
    """Return a line that lists the clips without object masks; an empty list if there are none."""
    absent = sorted(set(find_clips(root)) - {given.clip for given in inputs})
    if not absent:
        return []
    place = "without --masks DIR" if masks is None else f"no masks in {masks}"
    return [f"{track.name} is without {', '.join(absent)}: {place}"]


if __name__ == "__main__":
    run_cli(main)
