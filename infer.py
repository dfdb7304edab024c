"""Turn a masked SD clip into an HD clip: ``python infer.py --input sd.mp4 --output hd.mp4``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn, get_args

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm_video.config import load_config
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.diffusion.sampler import sampling_timesteps
from ldm_video.models.device import place
from ldm_video.models.open_model import FRAME_BY_FRAME, find_model, open_model
from ldm_video.models.video_model import VideoModel
from ldm_video.pipeline.colour import METHODS
from ldm_video.pipeline.job import Job, Outcome, Part, Watch, compare_path, open_mask, open_writers, run_job
from ldm_video.pipeline.plan import JOINS, PlanRules, longest_needed
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.pipeline.sizes import output_size, parse_tile
from ldm_video.pipeline.workers import find_share, own_device
from ldm_video.video_io import VideoInfo, parse_box, probe
from ldm_video.video_io.reader import Deinterlace

HERE = Path(__file__).resolve().parent
SHIPPED = HERE / "ldm_video" / "weights" / "small-x4"
DEFAULTS = HERE / "configs" / "infer" / "default.yaml"
FLAGS = (
    "model", "scale", "height", "prompt", "negative_prompt", "steps", "guidance", "seed", "window", "overlap", "tile",
    "deinterlace", "device", "dtype", "attention", "codec", "crf", "noise_level", "strength",
    "propagate",
)  # fmt: skip
INTEGERS = (
    "height", "steps", "seed", "window", "overlap", "segment", "chain", "tile_overlap", "feather", "crf", "noise_level",
)  # fmt: skip
NUMBERS = ("scale", "guidance", "dilate", "strength")
PROPAGATE = ("auto", "on", "off")
NOT_NEGATIVE = ("overlap", "tile_overlap", "feather", "dilate")


def main() -> None:
    """Read the command line, build the job, run it."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, on_signal)
    try:
        run(arguments)
    except KeyboardInterrupt as stop:
        line = "; ".join(filter(None, ("interrupted", *(text for text in stop.args if isinstance(text, str)))))
        print(line, file=sys.stderr)
        number = next((n for n in stop.args if isinstance(n, int)), int(signal.SIGINT))
        raise SystemExit(128 + number) from None


def on_signal(number: int, frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does, so that what was begun is put away; the number decides the exit code."""
    raise KeyboardInterrupt(number)


def run(arguments: argparse.Namespace) -> None:
    """One clip."""
    info, model, job, restorer, part = prepare(arguments)
    if arguments.dry_run:
        open_mask(job, info).close()
        open_writers(job, info)
        print(plan(info, job, model, restorer.settings))
        return
    outcome = run_with_bar(job, restorer, part)
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(summary(job, outcome))


def prepare(arguments: argparse.Namespace) -> tuple[VideoInfo, VideoModel, Job, Restorer, Part]:
    """What the command line asks for, checked and ready to run."""
    config = read_config(arguments)
    info = probe(arguments.input)
    model_files = find_model(SHIPPED if config.model == "shipped" else config.model, variant=config.variant)
    # A published checkpoint without its new temporal layers: untrained, they change nothing.
    model = open_model(model_files, variant=config.variant, temporal=FRAME_BY_FRAME)
    job = make_job(arguments, config, info, model)
    restorer = make_restorer(config, info, job, model)
    return info, model, job, restorer, Part(find_share(arguments.share, os.environ), arguments.restart, model_files)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="video, folder of frames, or picture")
    parser.add_argument("--output", required=True, help="video, folder for PNG files, or picture")
    parser.add_argument("--mask", type=Path, help="picture, folder or video; white = fill, black = keep")
    parser.add_argument("--box", action="append", default=[], metavar="x,y,w,h", help="fill this box; may repeat")
    parser.add_argument("--prompt", help="what to fill the mask with, and what the clip shows")
    parser.add_argument("--negative-prompt", help="what not to show")
    parser.add_argument("--model", help="bundle, Stable Diffusion folder or file, or hub name[@revision]")
    parser.add_argument("--config", default=DEFAULTS, help="a YAML file of configs/infer")
    parser.add_argument("--scale", type=float, help="enlargement; 1 inpaints without changing the size")
    parser.add_argument("--height", type=int, help="height of the output, instead of --scale")
    parser.add_argument("--steps", type=int, help="sampling steps")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale")
    parser.add_argument("--noise-level", type=int, help="of the low-res pixels, for the SD x4-upscaler")
    parser.add_argument("--strength", type=float, help="share of the steps to run, from the resized input")
    parser.add_argument("--seed", type=int, help="of the noise")
    parser.add_argument("--window", type=int, help="frames that the model sees at once")
    parser.add_argument("--overlap", type=int, help="frames that neighbouring windows share")
    parser.add_argument("--tile", metavar="HxW", help="work in tiles of this size, in output pixels: less memory")
    parser.add_argument("--propagate", choices=PROPAGATE, help="what other frames show inside the mask is taken")
    parser.add_argument("--deinterlace", choices=("auto", "on", "off"))
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", help="auto, fp32, bf16, fp16")
    parser.add_argument("--attention", help="auto, sdpa, xformers")
    parser.add_argument("--codec", help="libx264, libx265, libsvtav1, prores_ks, ffv1")
    parser.add_argument("--crf", type=int, help="quality of the output's codec; lower is better")
    parser.add_argument("--compare", action="store_true", help="also write resized input and result side by side")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--share", metavar="K/N", help="do the K-th of N shares of the clip; others do the rest")
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever an earlier run has kept")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the plan, write nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
    return parser.parse_intermixed_args()


def read_config(arguments: argparse.Namespace) -> DictConfig:
    """The defaults, then the file of ``--config``, then the command line; every key known, every value of its type."""
    overrides = [*flag_overrides(arguments), *arguments.overrides]
    config = load_config(arguments.config, overrides, base=DEFAULTS)
    if isinstance(config.deinterlace, bool):  # YAML reads a bare on or off as a truth value
        config.deinterlace = "on" if config.deinterlace else "off"
    if isinstance(config.propagate, bool):
        config.propagate = "on" if config.propagate else "off"
    if isinstance(config.cuts, bool):
        config.cuts = "auto" if config.cuts else "off"
    check_values(config, load_config(DEFAULTS))
    return config


def flag_overrides(arguments: argparse.Namespace) -> list[str]:
    """Command-line flags as overrides of the config. Text is quoted, so that YAML takes it as it is."""
    given = {name: getattr(arguments, name) for name in FLAGS if getattr(arguments, name) is not None}
    return [f"{name}={_quoted(value) if isinstance(value, str) else value}" for name, value in given.items()]


def check_values(config: DictConfig, defaults: DictConfig) -> None:
    """``UserError`` for a value of the wrong type. null is allowed where the defaults have it."""
    for key in map(str, config):
        value = config[key]
        if value is None and defaults[key] is None:
            continue
        kinds: tuple[type, ...]
        kinds, what = (
            ((int,), "a whole number") if key in INTEGERS
            else ((int, float), "a number") if key in NUMBERS
            else ((str,), "text")
        )  # fmt: skip
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"{key} is {value!r}, which is not {what}; correct it in the config or the command")
        if key in NOT_NEGATIVE and float(value) < 0:
            raise UserError(f"{key} is {value!r}; give 0 or more")


def make_job(arguments: argparse.Namespace, config: DictConfig, info: VideoInfo, model: VideoModel) -> Job:
    output = Path(arguments.output)
    if config.deinterlace not in get_args(Deinterlace):
        raise UserError(f"unknown deinterlace '{config.deinterlace}'; use {', '.join(get_args(Deinterlace))}")
    scale = model.sampling.scale if config.scale is None and config.height is None else config.scale
    if config.join not in JOINS:
        raise UserError(f"unknown join '{config.join}'; use {', '.join(JOINS)}")
    if config.cuts not in ("auto", "off"):
        raise UserError(f"unknown cuts '{config.cuts}'; use auto or off")
    if config.chain < 1:
        raise UserError(f"chain is {config.chain}; give 1 or more")
    window = model.sampling.window if config.window is None else config.window
    overlap = model.sampling.overlap if config.overlap is None else config.overlap
    return Job(
        source=Path(arguments.input),
        output=output,
        size=output_size(info.size, scale, config.height),
        mask=arguments.mask,
        boxes=[parse_box(text) for text in arguments.box],
        deinterlace=config.deinterlace,
        rules=PlanRules(max(config.segment, window, longest_needed(overlap)), overlap, config.chain, config.join),
        find_cuts=config.cuts == "auto",
        encoding={"codec": config.codec, "crf": config.crf, "preset": config.preset},
        compare=compare_path(output) if arguments.compare else None,
        overwrite=arguments.overwrite,
    )


def make_restorer(config: DictConfig, info: VideoInfo, job: Job, model: VideoModel) -> Restorer:
    settings = make_settings(config, info, job, model)
    place(model, own_device(config.device, os.environ, torch.cuda.device_count()), config.dtype, config.attention)
    if model.text is None and config.prompt is None and not config.negative_prompt:
        return Restorer(model, settings)
    if model.text is None:
        raise UserError(
            "this model has no text encoder and takes no prompt; leave --prompt out or choose another --model"
        )
    embeddings = model.text([config.prompt or "", config.negative_prompt])  # 2 n d
    return Restorer(model, settings, text=(embeddings[:1], embeddings[1:]))


def make_settings(config: DictConfig, info: VideoInfo, job: Job, model: VideoModel) -> RestoreSettings:
    """The config's values, the model's own where they are null; checked."""
    own = model.sampling
    settings = RestoreSettings(
        **{name: getattr(own, name) if config[name] is None else config[name]
           for name in ("steps", "guidance", "window", "overlap", "noise_level", "strength")},
        seed=config.seed,
        tile=None if config.tile is None else parse_tile(config.tile, model.multiple, config.tile_overlap),
        tile_overlap=config.tile_overlap,
        dilate=round(config.dilate * job.size[0] / info.size[0]),
        feather=config.feather,
        colour=config.colour,
        propagate=config.propagate,
    )  # fmt: skip
    if config.propagate not in PROPAGATE:
        raise UserError(f"unknown propagate '{config.propagate}'; use {', '.join(PROPAGATE)}")
    if settings.steps < 1:
        raise UserError(f"--steps {settings.steps} is not a positive number")
    if not settings.overlap < settings.window:
        raise UserError(
            f"--overlap {settings.overlap} must be less than --window {settings.window}; change one of them"
        )
    if settings.colour not in METHODS:
        raise UserError(f"unknown colour fix '{settings.colour}'; use one of {', '.join(METHODS)}")
    check_noise(settings, model)
    if settings.guidance != 1 and model.text is None:
        raise UserError("this model has no text encoder and nothing to guide to; leave --guidance out")
    try:
        sampling_timesteps(model.scheduler, settings.steps)
    except ValueError as error:
        raise UserError(f"--steps {settings.steps} does not suit this model's scheduler: {error}") from error
    return settings


def check_noise(settings: RestoreSettings, model: VideoModel) -> None:
    """``UserError`` for a noise level or a strength that the model cannot have."""
    if not 0 < settings.strength <= 1:
        raise UserError(f"--strength {settings.strength} is outside 0 to 1; 1 begins from noise alone")
    if settings.noise_level is None:
        return
    level, limit = settings.noise_level, model.sampling.noise_limit
    if limit is None:
        raise UserError("this model is not told of a noise level; leave --noise-level out")
    if not 0 <= level <= limit:
        raise UserError(f"--noise-level {level} is outside 0 to {limit}, which the model was trained with")


def run_with_bar(job: Job, restorer: Restorer, part: Part) -> Outcome:
    """The first share's process alone shows a bar: there is one terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    shown = console.is_terminal and part.share.index == 0
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown) as bar:
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

        return run_job(job, restorer, Watch(progress, say=lambda line: print(line, file=sys.stderr)), part)


def plan(info: VideoInfo, job: Job, model: VideoModel, settings: RestoreSettings) -> str:
    """What would be done, in a few lines."""
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    first = next(model.parameters())
    return "\n".join(
        (
            f"input:    {info.summary()}",
            f"output:   {job.output} {job.size[1]}x{job.size[0]}",
            f"model:    {parameters:.1f}M parameters on {first.device} in {str(first.dtype).removeprefix('torch.')}",
            f"sampling: {settings.steps} steps, guidance {settings.guidance}, seed {settings.seed}",
            f"windows:  {settings.window} frames, {settings.overlap} shared; tile {settings.tile or 'none'}",
        )
    )


def summary(job: Job, outcome: Outcome) -> str:
    if outcome.pending:
        return outcome.pending
    rate = outcome.frames / max(outcome.seconds, 1e-9)
    size = f"{job.size[1]}x{job.size[0]}"
    line = f"{job.output}: {outcome.frames} frames {size} in {outcome.seconds:.1f} s ({rate:.2f} frame/s)"
    return line if job.compare is None else f"{line}\n{job.compare}: resized input | result"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''").replace("${", "\\${") + "'"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_cli(main)
