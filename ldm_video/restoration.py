"""The work of ``infer.py``: from its command line to one clip, or an archive of them, restored with a model."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from ldm_video.core.errors import UserError
from ldm_video.diffusion.sampler import sampling_timesteps
from ldm_video.models.device import place
from ldm_video.models.lora import open_adapted, read_adapter
from ldm_video.models.open_model import find_model
from ldm_video.models.video_model import SamplingDefaults, VideoModel
from ldm_video.pipeline.arguments import SHIPPED
from ldm_video.pipeline.batch import (
    Clip,
    Report,
    at_work,
    find_mask,
    is_archive,
    list_clips,
    own_clips,
    run_batch,
)
from ldm_video.pipeline.colour import METHODS
from ldm_video.pipeline.job import Job, Outcome, Role, open_mask, open_writers, run_job
from ldm_video.pipeline.journal import Journal
from ldm_video.pipeline.memory_plan import check_memory, fit_memory, is_too_large
from ldm_video.pipeline.names import compare_path, follow_link, preview_path
from ldm_video.pipeline.plan import PlanRules, longest_needed
from ldm_video.pipeline.preview import FEW_STEPS, run_preview
from ldm_video.pipeline.prompts import Prompts, find_prompts
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.pipeline.screen import complain, describe_others, plan, run_with_bar, summary
from ldm_video.pipeline.sizes import output_size, parse_tile
from ldm_video.pipeline.workers import Share, find_share, finish, own_device
from ldm_video.video_io import VideoInfo, parse_box, probe
from ldm_video.video_io.encoders import check_size, find_encoder
from ldm_video.video_io.stills import is_image


@torch.no_grad()
def run(arguments: argparse.Namespace, config: DictConfig) -> None:
    """Restore one clip, or an archive. ``config``: the values of ``arguments`` and of the files that they name."""
    if Path(arguments.output).name in ("", ".."):  # files beside it are named after it
        arguments.output = os.path.abspath(arguments.output)
    if is_archive(Path(arguments.input), Path(arguments.output), arguments.mask):
        return run_archive(arguments, config)
    output = Path(arguments.output)
    arguments.output = follow_link(preview_path(output) if arguments.preview else output)
    info, job, restorer, role = prepare(arguments, config)
    run_clip(arguments, info, job, restorer, role, shown=role.share.index == 0)


def run_clip(
    arguments: argparse.Namespace, info: VideoInfo, job: Job, restorer: Restorer, role: Role, shown: bool
) -> Outcome:
    """Restore the clip, or print what would be done."""
    if arguments.dry_run:
        open_mask(job, info).close()
        for writer in open_writers(job, info):
            writer.rehearse(elsewhere=True)
        print(plan(info, job, restorer))
        return Outcome(0, 0.0, [])
    if arguments.preview and role.share.index == 0:
        outcome = run_with_bar(lambda watch: run_preview(job, restorer, watch), shown)
    elif arguments.preview:
        outcome = Outcome(0, 0.0, [], f"share {role.share} has nothing to do: a preview is the first one's")
    else:
        outcome = run_with_bar(lambda watch: run_job(job, restorer, watch, role), shown)
    for warning in outcome.warnings:
        complain(f"warning: {warning}")
    print(summary(job, outcome))
    return outcome


def run_archive(arguments: argparse.Namespace, config: DictConfig) -> None:
    """Restore this process's share of the videos below a folder, with one model. ``UserError`` if any failed."""
    target = Path(arguments.output)
    share, prompts = find_share(arguments.share, os.environ), find_prompts(config)
    also = [path for path, used in ((compare_path, arguments.compare), (preview_path, arguments.preview)) if used]
    clips, others = list_clips(Path(arguments.input), target, config.codec, also, arguments.mask)
    if arguments.preview:
        clips = [replace(clip, output=follow_link(preview_path(clip.output))) for clip in clips]
    own = own_clips(clips, share)
    complain(f"{arguments.input}: {len(clips)} videos, {len(own)} of them for share {share}{describe_others(others)}")
    with nullcontext() if arguments.dry_run else at_work(target, share):
        model, role = load_model(arguments, config)
        restorer = make_restorer(config, model, prompts, arguments.preview)
        check_command(arguments, config, model.sampling, restorer)

        def work(clip: Clip) -> Outcome:
            paths = {"input": clip.source, "output": clip.output, "mask": find_mask(arguments.mask, clip.name)}
            given, info = argparse.Namespace(**vars(arguments) | paths), probe(clip.source)
            alone = replace(role, share=Share())
            job, fitted = prepare_clip(given, config, info, model.sampling, restorer, alone)
            return run_clip(given, info, job, fitted, alone, shown=share.index == 0)

        path = target / ("report.preview.json" if arguments.preview else "report.json")
        report = None if arguments.dry_run else Report(path, clips, own, share.count > 1)
        states = run_batch(own, report, work, arguments.overwrite or arguments.preview, complain)
    done = "to do" if arguments.dry_run else "done"
    print(f"{target}: {states['done']} {done}, {states['skipped']} skipped, {states['failed']} failed")
    if arguments.share is None:
        finish(os.environ, failed=states["failed"] > 0)
    if states["failed"]:
        told = "" if report is None else f"; {path} says why"
        raise UserError(f"{states['failed']} of {len(own)} clips failed{told}")


def check_command(arguments: argparse.Namespace, config: DictConfig, own: SamplingDefaults, restorer: Restorer) -> None:
    """Raise ``UserError`` for what is wrong with a command whatever the clip: once, not once per clip."""
    if config.memory is not None:
        check_memory(config.memory, restorer)
    find_encoder(config.codec).arguments(config.crf, config.preset)
    make_size(config, (2, 2), own)
    for text in arguments.box:
        parse_box(text)
    if arguments.mask is not None and not arguments.mask.exists():
        raise UserError(f"{arguments.mask} does not exist; check the path")


def prepare(arguments: argparse.Namespace, config: DictConfig) -> tuple[VideoInfo, Job, Restorer, Role]:
    """Return what the command line asks for on one clip, checked and ready to run."""
    prompts = find_prompts(config)
    info = probe(arguments.input)
    model, role = load_model(arguments, config)
    restorer = make_restorer(config, model, prompts, arguments.preview)
    job, restorer = prepare_clip(arguments, config, info, model.sampling, restorer, role)
    return info, job, restorer, role


def load_model(arguments: argparse.Namespace, config: DictConfig) -> tuple[VideoModel, Role]:
    """Load the model, and work out this process's part. A preview takes few steps unless they are given."""
    model_files = find_model(SHIPPED if config.model == "shipped" else config.model, variant=config.variant)
    adapter = None if config.lora is None else read_adapter(config.lora)
    model = open_adapted(model_files, adapter, config.variant)
    share, lora = find_share(arguments.share, os.environ), None if adapter is None else (adapter.where, adapter.scale)
    return model, Role(share, arguments.restart, model_files, lora, config.variant)


def prepare_clip(
    arguments: argparse.Namespace,
    config: DictConfig,
    info: VideoInfo,
    own: SamplingDefaults,
    restorer: Restorer,
    role: Role,
) -> tuple[Job, Restorer]:
    """Prepare one clip, with the tile and segments that fit ``--memory``, or what is free if segments need more."""
    job = make_job(arguments, config, info, own)
    memory = config.memory
    if memory is None and role.share.count == 1 and is_too_large(info, job, restorer, os.environ):
        open_writers(job, info, joining=Journal(job.output).joining)  # an impossible output fails first
        memory = "auto"
    if memory is None:
        return job, restorer
    job, restorer, line = fit_memory(memory, info, job, restorer, role, os.environ)
    complain(line)
    return job, restorer


def make_job(arguments: argparse.Namespace, config: DictConfig, info: VideoInfo, own: SamplingDefaults) -> Job:
    output, size = Path(arguments.output), make_size(config, info.size, own)
    if output.suffix and not output.is_dir() and not is_image(output):
        check_size(find_encoder(config.codec), size, info.size)  # before a mask of that size is made
    window = own.window if config.window is None else config.window
    overlap = own.overlap if config.overlap is None else config.overlap
    return Job(
        source=Path(arguments.input),
        output=output,
        size=size,
        mask=arguments.mask,
        boxes=[parse_box(text) for text in arguments.box],
        deinterlace=config.deinterlace,
        rules=PlanRules(max(config.segment, window, longest_needed(overlap)), overlap, config.chain, config.join),
        find_cuts=config.cuts == "auto",
        encoding={"codec": config.codec, "crf": config.crf, "preset": config.preset},
        compare=compare_path(output) if arguments.compare else None,
        overwrite=arguments.overwrite or arguments.preview,
    )


def make_size(config: DictConfig, size: tuple[int, int], own: SamplingDefaults) -> tuple[int, int]:
    """Return (height, width) of the output of a clip of ``size``."""
    scale = own.scale if config.scale is None and config.height is None else config.scale
    return output_size(size, scale, config.height)


def make_restorer(config: DictConfig, model: VideoModel, prompts: Prompts | None, preview: bool = False) -> Restorer:
    """Place the model on its device, and embed the prompts. ``UserError`` if it takes none but one is given."""
    settings = make_settings(config, model, preview)
    place(model, own_device(config.device, os.environ, torch.cuda.device_count()), config.dtype, config.attention)
    if model.text is None and config.prompt is None and prompts is None and not config.negative_prompt:
        return Restorer(model, settings)
    if model.text is None:
        raise UserError(
            "this model has no text encoder and takes no prompt; leave --prompt out or choose another --model"
        )
    texts = (config.prompt or "",) if prompts is None else prompts.texts
    embeddings = model.text([*texts, config.negative_prompt])  # k+1 n d
    return Restorer(model, settings, (embeddings[:-1], embeddings[-1:]), prompts)


def make_settings(config: DictConfig, model: VideoModel, preview: bool = False) -> RestoreSettings:
    """Return the config's values, or the model's own where they are null. ``UserError`` for invalid ones."""
    own = model.sampling
    if preview:
        own = replace(own, steps=min(own.steps, FEW_STEPS))
    settings = RestoreSettings(
        **{name: getattr(own, name) if config[name] is None else config[name]
           for name in ("steps", "guidance", "window", "overlap", "noise_level", "strength", "average",
                        "steady", "fidelity")},
        seed=config.seed,
        tile=None if config.tile is None else parse_tile(config.tile, model.multiple, config.tile_overlap),
        tile_overlap=config.tile_overlap,
        dilate=config.dilate,
        feather=config.feather,
        colour=config.colour,
        propagate=config.propagate,
        fill=("patches" if model.text is None else "model") if config.fill == "auto" else config.fill,
    )  # fmt: skip
    check_steps(settings, model)
    if not settings.overlap < settings.window:
        raise UserError(
            f"--overlap {settings.overlap} must be less than --window {settings.window}; change one of them"
        )
    if settings.colour not in METHODS:
        raise UserError(f"unknown colour fix '{settings.colour}'; use one of {', '.join(METHODS)}")
    if not 0 <= settings.fidelity <= 1:
        raise UserError(f"fidelity is {settings.fidelity}; give a share from 0 to 1")
    check_noise(settings, model)
    if settings.guidance != 1 and model.text is None:
        raise UserError("this model has no text encoder and nothing to guide to; leave --guidance out")
    return settings


def check_steps(settings: RestoreSettings, model: VideoModel) -> None:
    """Raise ``UserError`` for a number of steps that the model does not support."""
    if settings.steps < 0:
        raise UserError(f"--steps {settings.steps} is below 0")
    if settings.steps > 0:
        try:
            sampling_timesteps(model.scheduler, settings.steps)
        except ValueError as error:
            raise UserError(f"--steps {settings.steps} does not suit this model's scheduler: {error}") from error
    elif not model.codec.sees_evidence:
        raise UserError("--steps 0 leaves all to a decoder that sees the clip, this model's does not; give 1 or more")
    elif settings.strength < 1:
        raise UserError(
            f"--strength {settings.strength} is a share of steps, and --steps 0 has none; give --steps 1 or more"
        )


def check_noise(settings: RestoreSettings, model: VideoModel) -> None:
    """Raise ``UserError`` for a strength or noise level that is out of range or that the model does not support."""
    if not 0 < settings.strength <= 1:
        raise UserError(f"--strength {settings.strength} is outside 0 to 1; 1 begins from noise alone")
    if settings.noise_level is None:
        return
    level, limit = settings.noise_level, model.sampling.noise_limit
    if limit is None:
        raise UserError("this model is not told of a noise level; leave --noise-level out")
    if not 0 <= level <= limit:
        raise UserError(f"--noise-level {level} is outside 0 to {limit}, which the model was trained with")
