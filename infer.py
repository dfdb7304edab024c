"""Turn a masked SD clip into an HD clip: ``python infer.py --input sd.mp4 --output hd.mp4``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm_video.config import load_config
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.diffusion.sampler import sampling_timesteps
from ldm_video.models.bundle import load_bundle
from ldm_video.models.device import place
from ldm_video.models.video_model import VideoModel
from ldm_video.pipeline.colour import METHODS
from ldm_video.pipeline.job import Job, Outcome, compare_path, open_mask, open_writers, run_job
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.pipeline.sizes import output_size, parse_tile
from ldm_video.video_io import VideoInfo, parse_box, probe
from ldm_video.video_io.reader import Deinterlace

HERE = Path(__file__).resolve().parent
SHIPPED = HERE / "ldm_video" / "weights" / "small-x4"
DEFAULTS = HERE / "configs" / "infer" / "default.yaml"
FLAGS = (
    "model", "scale", "height", "prompt", "negative_prompt", "steps", "guidance", "seed", "window", "overlap", "tile",
    "deinterlace", "device", "dtype", "attention", "codec", "crf",
)  # fmt: skip
INTEGERS = ("height", "steps", "seed", "window", "overlap", "segment", "tile_overlap", "feather", "crf")
NUMBERS = ("scale", "guidance", "dilate")
NOT_NEGATIVE = ("overlap", "tile_overlap", "feather", "dilate")


def main() -> None:
    """Read the command line, build the job, run it."""
    arguments = parse_arguments()
    config = read_config(arguments)
    info = probe(arguments.input)
    model = load_bundle(SHIPPED if config.model == "shipped" else config.model)
    job = make_job(arguments, config, info, model)
    restorer = make_restorer(config, info, job, model)
    if arguments.dry_run:
        open_mask(job, info).close()
        open_writers(job, info)
        print(plan(info, job, model, restorer.settings))
        return
    outcome = run_with_bar(job, restorer, info)
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(summary(job, outcome))


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="video, folder of frames, or picture")
    parser.add_argument("--output", required=True, help="video, folder for PNG files, or picture")
    parser.add_argument("--mask", type=Path, help="picture, folder or video; white = fill, black = keep")
    parser.add_argument("--box", action="append", default=[], metavar="x,y,w,h", help="fill this box; may repeat")
    parser.add_argument("--prompt", help="what to fill the mask with, and what the clip shows")
    parser.add_argument("--negative-prompt", help="what not to show")
    parser.add_argument("--model", help="model bundle (a folder); default: the one that ships")
    parser.add_argument("--config", default=DEFAULTS, help="a YAML file of configs/infer")
    parser.add_argument("--scale", type=float, help="enlargement; 1 inpaints without changing the size")
    parser.add_argument("--height", type=int, help="height of the output, instead of --scale")
    parser.add_argument("--steps", type=int, help="sampling steps")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale")
    parser.add_argument("--seed", type=int, help="of the noise")
    parser.add_argument("--window", type=int, help="frames that the model sees at once")
    parser.add_argument("--overlap", type=int, help="frames that neighbouring windows share")
    parser.add_argument("--tile", metavar="HxW", help="work in tiles of this size, in output pixels: less memory")
    parser.add_argument("--deinterlace", choices=("auto", "on", "off"))
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", help="auto, fp32, bf16, fp16")
    parser.add_argument("--attention", help="auto, sdpa, xformers")
    parser.add_argument("--codec", help="libx264, libx265, libsvtav1, prores_ks, ffv1")
    parser.add_argument("--crf", type=int, help="quality of the output's codec; lower is better")
    parser.add_argument("--compare", action="store_true", help="also write resized input and result side by side")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the plan, write nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
    return parser.parse_intermixed_args()


def read_config(arguments: argparse.Namespace) -> DictConfig:
    """The defaults, then the file of ``--config``, then the command line; every key known, every value of its type."""
    overrides = [*flag_overrides(arguments), *arguments.overrides]
    config = load_config(arguments.config, overrides, base=DEFAULTS)
    if isinstance(config.deinterlace, bool):  # YAML reads a bare on or off as a truth value
        config.deinterlace = "on" if config.deinterlace else "off"
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
    window = model.sampling.window if config.window is None else config.window
    return Job(
        source=Path(arguments.input),
        output=output,
        size=output_size(info.size, scale, config.height),
        mask=arguments.mask,
        boxes=[parse_box(text) for text in arguments.box],
        deinterlace=config.deinterlace,
        segment=max(config.segment, window),
        overlap=model.sampling.overlap if config.overlap is None else config.overlap,
        encoding={"codec": config.codec, "crf": config.crf, "preset": config.preset},
        compare=compare_path(output) if arguments.compare else None,
        overwrite=arguments.overwrite,
    )


def make_restorer(config: DictConfig, info: VideoInfo, job: Job, model: VideoModel) -> Restorer:
    settings = make_settings(config, info, job, model)
    place(model, config.device, config.dtype, config.attention)
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
           for name in ("steps", "guidance", "window", "overlap")},
        seed=config.seed,
        tile=None if config.tile is None else parse_tile(config.tile, model.multiple, config.tile_overlap),
        tile_overlap=config.tile_overlap,
        dilate=round(config.dilate * job.size[0] / info.size[0]),
        feather=config.feather,
        colour=config.colour,
    )  # fmt: skip
    if settings.steps < 1:
        raise UserError(f"--steps {settings.steps} is not a positive number")
    for name, length in (("--window", settings.window), ("segment", job.segment)):
        if not settings.overlap < length:
            raise UserError(f"--overlap {settings.overlap} must be less than {name} {length}; change one of them")
    if settings.colour not in METHODS:
        raise UserError(f"unknown colour fix '{settings.colour}'; use one of {', '.join(METHODS)}")
    if settings.guidance != 1 and model.text is None:
        raise UserError("this model has no text encoder and nothing to guide to; leave --guidance out")
    try:
        sampling_timesteps(model.scheduler, settings.steps)
    except ValueError as error:
        raise UserError(f"--steps {settings.steps} does not suit this model's scheduler: {error}") from error
    return settings


def run_with_bar(job: Job, restorer: Restorer, info: VideoInfo) -> Outcome:
    columns = ("frames", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=info.frames, rate="")

        def progress(frames: float) -> None:
            elapsed = bar.tasks[task].elapsed or 0.0
            bar.update(task, completed=int(frames), rate=f"{frames / elapsed:.2f} frame/s" if elapsed else "")

        return run_job(job, restorer, progress)


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
    rate = outcome.frames / max(outcome.seconds, 1e-9)
    size = f"{job.size[1]}x{job.size[0]}"
    line = f"{job.output}: {outcome.frames} frames {size} in {outcome.seconds:.1f} s ({rate:.2f} frame/s)"
    return line if job.compare is None else f"{line}\n{job.compare}: resized input | result"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''").replace("${", "\\${") + "'"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_cli(main)
