"""Model bundles: one folder in the diffusers layout from which the whole model can be rebuilt.

``model_index.json`` names the class of every part and the model's own options; each part has a subfolder with its
``config.json`` and ``model.safetensors``. Loading is strict: a missing or unexpected key is an error that names it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from torch import nn

from ldm_video.core.checkpoints import INDEX, load_strict, read_json, read_weights, save_weights
from ldm_video.core.errors import UserError
from ldm_video.core.evidence import EvidenceLayout
from ldm_video.core.files import atomic_path
from ldm_video.diffusion.sampler import SCHEDULERS, draws_noise, make_scheduler
from ldm_video.models.codec import ImageCodec, VideoCodec
from ldm_video.models.dense_restorer import read_former
from ldm_video.models.inflate import VideoUNet
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.models.real_esrgan import NOTICE
from ldm_video.models.text import TextEncoder
from ldm_video.models.video_model import SamplingDefaults, VideoModel

FORMAT = 2
_READABLE_FORMATS = (1, FORMAT)  # in format 1, the restorer was a decoder of latents

# Class name in model_index.json -> how to build the part from its config.json.
BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "VideoUNet": VideoUNet.from_config,
    "VideoCodec": lambda config: VideoCodec(**config),
    "PairedCodec": lambda config: PairedCodec(**config),
    "ImageCodec": lambda config: ImageCodec(AutoencoderKL.from_config(config)),
}


def save_bundle(model: VideoModel, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write ``model`` to ``folder`` atomically, replacing an existing bundle.

    Floating-point weights are cast to ``dtype`` if given. Models with a restorer get the notice that the licence of its
    published weights requires.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        if isinstance(model.codec, PairedCodec):
            shutil.copyfile(NOTICE, temporary / "NOTICE.txt")
        index: dict[str, Any] = {
            "_class_name": "VideoModel",
            "format": FORMAT,
            "layout": asdict(model.layout),
            "shared_noise": model.shared_noise,
            "sees_canvas": model.sees_canvas,
            "sampling": asdict(model.sampling),
            "parts": {},
        }
        for name in ("denoiser", "codec"):
            part = getattr(model, name)
            index["parts"][name] = type(part).__name__
            (temporary / name).mkdir()
            _write_json(temporary / name / "config.json", part.config)
            save_weights(part, temporary / name / "model.safetensors", dtype)
        schedulers = {"scheduler": model.scheduler}
        if model.lowres_scheduler is not None:
            schedulers["lowres_scheduler"] = model.lowres_scheduler
        for name, scheduler in schedulers.items():
            index["parts"][name] = type(scheduler).__name__
            scheduler.save_pretrained(temporary / name)
        if model.text is not None:
            index["parts"]["text"] = type(model.text).__name__
            model.text.save(temporary / "text", dtype)
        _write_json(temporary / INDEX, index)


def load_bundle(folder: str | Path) -> VideoModel:
    """Rebuild the model that :func:`save_bundle` wrote, in float32 on the CPU, frozen and in evaluation mode.

    Raises ``UserError`` for a folder that is not a bundle, an unknown part, and weights that do not fit.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} is not a model bundle: it has no {INDEX}; give the bundle's folder")
    index = read_json(folder / INDEX)
    if index.get("format") not in _READABLE_FORMATS:
        raise UserError(
            f"{folder / INDEX} has format {index.get('format')}, this version reads up to {FORMAT}; update ldm-video"
        )
    try:
        parts, shared_noise = dict(index["parts"]), float(index["shared_noise"])
        sees_canvas = bool(index.get("sees_canvas", False))
        denoiser, codec, scheduler = parts.pop("denoiser"), parts.pop("codec"), parts.pop("scheduler")
        layout, sampling = EvidenceLayout(**index["layout"]), SamplingDefaults(**index["sampling"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / INDEX} has a missing or wrong entry ({error}); copy the bundle again") from error
    lowres_scheduler = parts.pop("lowres_scheduler", None)
    has_text = parts.get("text") == "TextEncoder"
    if has_text:
        del parts["text"]
    if parts:
        raise UserError(f"unknown model part '{next(iter(parts))}' in {folder / INDEX}; update ldm-video")
    model = VideoModel(
        denoiser=_load_part(folder / "denoiser", denoiser, index["format"]),
        codec=_load_part(folder / "codec", codec, index["format"]),
        scheduler=_load_sampler(folder / "scheduler", scheduler),
        layout=layout,
        text=TextEncoder.load(folder / "text") if has_text else None,
        shared_noise=shared_noise,
        sampling=sampling,
        lowres_scheduler=_load_scheduler(folder / "lowres_scheduler", lowres_scheduler) if lowres_scheduler else None,
        sees_canvas=sees_canvas,
    )
    return model.eval().requires_grad_(False)


def _load_part(folder: Path, name: str, form: int) -> Any:
    if name not in BUILDERS:
        raise UserError(f"unknown model part '{name}' in {folder.parent / INDEX}; known parts: {', '.join(BUILDERS)}")
    config = read_json(folder / "config.json")
    try:
        part = BUILDERS[name](config)
    except (KeyError, TypeError, ValueError) as error:
        where = folder / "config.json"
        raise UserError(
            f"{where} does not describe a {name} of this version ({error}); copy the bundle again, or take a newer one"
        ) from error
    weights = folder / "model.safetensors"
    state = {key: value.float() if value.is_floating_point() else value for key, value in read_weights(weights).items()}
    if form == 1 and name == "PairedCodec":
        state = read_former(state, "restorer.")
    load_strict(part, state, weights)
    return part


def _load_scheduler(folder: Path, name: str) -> SchedulerMixin:
    options = folder / "scheduler_config.json"
    config = read_json(options)
    try:
        return make_scheduler({**config, "_class_name": name})
    except UserError as error:
        where = options if name in SCHEDULERS else folder.parent / INDEX  # the index names the class
        raise UserError(f"{where}: {error}") from error


def _load_sampler(folder: Path, name: str) -> SchedulerMixin:
    scheduler = _load_scheduler(folder, name)
    if draws_noise(scheduler):
        raise UserError(f"{folder}: {name} adds noise at each step, which would differ from window to window; use DDIM")
    return scheduler


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
