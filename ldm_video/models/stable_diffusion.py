"""Published Stable Diffusion checkpoints as video models that initially reproduce them exactly.

======================  =======================  ==================================================
checkpoint              its input channels       added input channels, with zero weights
======================  =======================  ==================================================
x4-upscaler             latents, low-res RGB     hole, known pixels (layout ``pixels``)
inpainting              latents, hole, canvas    the evidence, space to depth
text to image           latents                  the evidence, space to depth
======================  =======================  ==================================================

Betas, prediction type, scaling factor, widths and heads are the checkpoint's. Steps, guidance and other sampling
defaults are those of the diffusers pipeline for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, ModelMixin, SchedulerMixin, UNet2DConditionModel
from safetensors import SafetensorError

from ldm_video.core.checkpoints import INDEX, read_json, refuse_keys
from ldm_video.core.errors import UserError
from ldm_video.core.evidence import EvidenceLayout
from ldm_video.diffusion.sampler import DETERMINISTIC, draws_noise, known_options, make_scheduler
from ldm_video.models.codec import ImageCodec
from ldm_video.models.inflate import grow_conv_in, inflate
from ldm_video.models.quiet import quiet
from ldm_video.models.temporal import TemporalConfig
from ldm_video.models.text import TextEncoder
from ldm_video.models.variants import choose_variant
from ldm_video.models.video_model import SamplingDefaults, VideoModel

UPSCALER_SCALING = 0.08333  # of the x4-upscaler's latents; missing in early configs
_Part = TypeVar("_Part", bound=ModelMixin)


@dataclass(frozen=True)
class Checkpoint:
    """The built parts of a Stable Diffusion checkpoint, in float32.

    Attributes:
        unet, autoencoder, text: the networks, the last with its tokenizer.
        scheduler, lowres_scheduler: configs in the diffusers format, including ``_class_name``; the second is for the
            noise on the x4-upscaler's low-res pixels.
        noise_limit: the highest noise level of the low-res pixels.
    """

    unet: UNet2DConditionModel
    autoencoder: AutoencoderKL
    text: TextEncoder
    scheduler: Mapping[str, Any]
    lowres_scheduler: Mapping[str, Any] | None = None
    noise_limit: int | None = None


def read_pipeline(folder: Path, variant: str | None = None) -> Checkpoint:
    """Read the folder of a diffusers pipeline. Strict, safetensors only, sharded or not.

    ``variant``: of the weights of all parts, such as ``fp16``; None chooses for each part from the files present.

    Raises ``UserError`` for parts that are missing, damaged or not Stable Diffusion's.
    """
    index = read_json(folder / INDEX)
    for name, wanted in {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}.items():
        found = (index.get(name) or [None, None])[1]
        if found != wanted:
            raise UserError(
                f"{folder / INDEX}: part {name} is {found}, not {wanted}; use a Stable Diffusion checkpoint"
            )
    has_noise = "low_res_scheduler" in index
    autoencoder = _read_part(AutoencoderKL, folder / "vae", variant)
    if has_noise and "scaling_factor" not in read_json(folder / "vae" / "config.json"):
        autoencoder.register_to_config(scaling_factor=UPSCALER_SCALING)  # the default is Stable Diffusion's
    text = folder / "text_encoder"
    read_json(text / "config.json")  # raises if the whole part is missing
    return Checkpoint(
        unet=_read_part(UNet2DConditionModel, folder / "unet", variant),
        autoencoder=autoencoder,
        text=TextEncoder.load(text, folder / "tokenizer", choose_variant(text, variant)),
        scheduler=_read_scheduler(
            folder / "scheduler" / "scheduler_config.json", partial(deterministic, upscales=has_noise)
        ),
        lowres_scheduler=_read_scheduler(folder / "low_res_scheduler" / "scheduler_config.json", _lowres_scheduler)
        if has_noise
        else None,
        noise_limit=index.get("max_noise_level"),
    )


def _read_part(kind: type[_Part], folder: Path, variant: str | None) -> _Part:
    read_json(folder / "config.json")
    chosen = choose_variant(folder, variant)
    try:
        with quiet("diffusers"):
            part, report = kind.from_pretrained(  # also converts older names of the autoencoder's attention
                folder,
                variant=chosen,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read ({error}); copy or download it again") from error
    misshapen = [key for key, *_ in report["mismatched_keys"]]  # (key, shape, shape)
    refuse_keys(folder, report["missing_keys"], report["unexpected_keys"], misshapen)
    part.register_to_config(_name_or_path=None)  # keep local paths out of bundles
    return part


def _read_scheduler(path: Path, make: Callable[[Mapping[str, Any]], SchedulerMixin]) -> dict[str, Any]:
    """Read a stored config and check that ``make`` accepts it; add the path to its error."""
    config = read_json(path)
    try:
        make(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def to_video(checkpoint: Checkpoint, temporal: TemporalConfig) -> VideoModel:
    """Build a video model that reproduces the checkpoint on every frame: new layers and input channels start at zero.

    Raises ``UserError`` for a UNet whose inputs are not in the table above, and for unsupported UNets (SDXL and
    similar).
    """
    unet, codec = checkpoint.unet, ImageCodec(checkpoint.autoencoder)
    latents, taken = codec.latent_channels, int(unet.config["in_channels"])
    _check_unet(unet, latents)
    lowres_scheduler = None
    layout = EvidenceLayout("space_to_depth", codec.factor)
    if checkpoint.lowres_scheduler is not None and taken == latents + 3:
        layout = EvidenceLayout("pixels", codec.factor)
        lowres_scheduler = _lowres_scheduler(checkpoint.lowres_scheduler)
    elif taken not in (latents, 1 + 2 * latents):
        raise UserError(
            f"a UNet with {taken} input channels and latents of {latents}: neither text to image, inpainting "
            "nor x4-upscaler; use one of these"
        )
    sees_canvas = taken == 1 + 2 * latents
    own = 1 + 2 * latents if sees_canvas else latents
    return VideoModel(
        denoiser=inflate(grow_conv_in(unet, own + layout.channels), temporal),
        codec=codec,
        scheduler=deterministic(checkpoint.scheduler, upscales=lowres_scheduler is not None),
        layout=layout,
        text=checkpoint.text,
        sampling=_sampling(sees_canvas, lowres_scheduler is not None, checkpoint.noise_limit),
        lowres_scheduler=lowres_scheduler,
        sees_canvas=sees_canvas,
    )


def deterministic(config: Mapping[str, Any], *, upscales: bool) -> SchedulerMixin:
    """Return the checkpoint's scheduler, or DDIM with its betas and prediction type if it is not deterministic.

    ``clip_sample`` is set to False, and ``steps_offset`` to 1 unless it ``upscales``, whatever is stored: early configs
    have wrong values, which diffusers' pipelines correct too. Options that no scheduler has any more are dropped.
    """
    name = config.get("_class_name")
    # stochastic_sampling is an option of flows, which DDIM cannot replace.
    forced: dict[str, Any] = {"clip_sample": False, "stochastic_sampling": False}
    forced |= {} if upscales else {"steps_offset": 1}
    options = known_options(config)
    if name in DETERMINISTIC:
        scheduler = make_scheduler(options, _class_name=name, **forced)
        if not draws_noise(scheduler):  # DPM-Solver does with some options
            return scheduler
    return make_scheduler(options, _class_name="DDIMScheduler", **forced)


def _lowres_scheduler(config: Mapping[str, Any]) -> SchedulerMixin:
    return make_scheduler(known_options(config))


def _check_unet(unet: UNet2DConditionModel, latents: int) -> None:
    if unet.config["out_channels"] != latents:
        raise UserError(f"the UNet makes {unet.config['out_channels']} channels, latents have {latents}; they must fit")
    for key in ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type"):
        if unet.config[key] is not None:
            raise UserError(f"a UNet with {key} {unet.config[key]} (SDXL and its kin) is not supported; use SD 1 or 2")


def _sampling(inpaints: bool, upscales: bool, noise_limit: int | None) -> SamplingDefaults:
    name = "Upscale" if upscales else "Inpaint" if inpaints else "Img2Img"
    pipeline = getattr(diffusers, f"StableDiffusion{name}Pipeline")
    default = {
        key: value.default
        for function in (pipeline.__init__, pipeline.__call__)
        for key, value in inspect.signature(function).parameters.items()
    }
    return SamplingDefaults(
        steps=default["num_inference_steps"],
        guidance=default["guidance_scale"],
        scale=1 if inpaints else 4,
        strength=default.get("strength", 1.0),
        noise_level=default.get("noise_level"),
        noise_limit=default.get("max_noise_level") if noise_limit is None else noise_limit,
    )
