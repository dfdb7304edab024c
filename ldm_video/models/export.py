"""Export a video model's spatial part as the diffusers pipeline of the Stable Diffusion layout that it grew from."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from ldm_video.core.checkpoints import load_strict
from ldm_video.core.errors import UserError
from ldm_video.models.codec import ImageCodec
from ldm_video.models.inflate import VideoUNet, WithTemporal, split_state_dict
from ldm_video.models.stable_diffusion import UPSCALER_SCALING
from ldm_video.models.temporal import TemporalBlock
from ldm_video.models.text import TextEncoder
from ldm_video.models.video_model import VideoModel

_SAMPLE_SIZE = {"StableDiffusionUpscalePipeline": 128}  # as published; 64 for the others


def to_pipeline(model: VideoModel) -> tuple[Any, list[str]]:
    """Return a diffusers pipeline that shares the parts of ``model``, and a line for each thing that it leaves out.

    Temporal layers are left out, and input channels that the published layout does not have.

    Raises ``UserError`` for a model that no Stable Diffusion pipeline can run.
    """
    autoencoder, text = _published_parts(model)
    kind, taken = _layout(model)
    unet, left_out = spatial_unet(model.denoiser, taken)
    if unet.config["sample_size"] is None:  # not stored in single files
        unet.register_to_config(sample_size=_SAMPLE_SIZE.get(kind, 64))
    parts: dict[str, Any] = {
        "vae": autoencoder,
        "unet": unet,
        "text_encoder": text.model,
        "tokenizer": text.tokenizer,
        "scheduler": model.scheduler,
    }
    if model.lowres_scheduler is not None:
        parts |= {"low_res_scheduler": model.lowres_scheduler, "max_noise_level": model.sampling.noise_limit}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, kind)(**parts), left_out


def spatial_unet(denoiser: VideoUNet, in_channels: int) -> tuple[UNet2DConditionModel, list[str]]:
    """Copy the 2-D UNet with its first ``in_channels`` input channels; also return lines on what is left out."""
    state, temporal = split_state_dict(denoiser.state_dict())
    conv_in = state["conv_in.weight"]  # out in 3 3
    dropped, state["conv_in.weight"] = conv_in[:, in_channels:], conv_in[:, :in_channels].clone()
    unet = UNet2DConditionModel.from_config({**denoiser.unet.config, "in_channels": in_channels})
    load_strict(unet, state, "the spatial UNet")
    left_out = []
    if temporal:
        count = sum(value.numel() for value in temporal.values())
        lost = "nothing is lost: they are new" if is_new(denoiser) else "they are trained: frames are on their own now"
        left_out.append(f"temporal layers, {count:,} parameters ({lost})")
    if dropped.shape[1]:
        used = bool(dropped.any())
        lost = "trained: the result no longer sees this evidence" if used else "all zero: nothing is lost"
        left_out.append(f"input channels {in_channels} to {conv_in.shape[1] - 1} of {conv_in.shape[1]} ({lost})")
    return unet.eval(), left_out


def temporal_blocks(denoiser: VideoUNet) -> dict[str, TemporalBlock]:
    """Return the temporal blocks by the path of the layer in the diffusers UNet that each one follows."""
    return {name: module.temporal for name, module in denoiser.unet.named_modules() if isinstance(module, WithTemporal)}


def is_new(denoiser: VideoUNet) -> bool:
    """Return whether all temporal layers are the identity, as created by :func:`~ldm_video.models.inflate.inflate`."""
    outputs = [layer for block in temporal_blocks(denoiser).values() for layer in block.output_layers()]
    return not any(bool(parameter.any()) for layer in outputs for parameter in layer.parameters())


def _published_parts(model: VideoModel) -> tuple[AutoencoderKL, TextEncoder]:
    if not isinstance(model.codec, ImageCodec):
        raise UserError(
            f"this model's codec is a {type(model.codec).__name__} of ldm-video, which diffusers does not have; only "
            "models that began as Stable Diffusion can be exported"
        )
    if model.text is None or not isinstance(model.text.model, CLIPTextModel):
        raise UserError("this model has no CLIP text encoder, which Stable Diffusion's pipelines need; it stays here")
    if "prediction_type" not in model.scheduler.config:
        raise UserError(
            f"this model samples with {type(model.scheduler).__name__} (flow matching), which Stable Diffusion's "
            "pipelines do not run; it stays here"
        )
    return model.codec.autoencoder, model.text


def _layout(model: VideoModel) -> tuple[str, int]:
    """Return the pipeline's class and the number of its UNet's input channels, which are the model's first ones."""
    latents, kind = model.codec.latent_channels, model.layout.kind
    match (model.sees_canvas, model.lowres_scheduler is not None, kind):
        case (False, True, "pixels") if model.codec.scaling == UPSCALER_SCALING:  # diffusers overwrites any other
            return "StableDiffusionUpscalePipeline", latents + 3
        case (True, False, _):
            return "StableDiffusionInpaintPipeline", 1 + 2 * latents
        case (False, False, "space_to_depth"):
            return "StableDiffusionPipeline", latents
    raise UserError(
        f"no Stable Diffusion pipeline has this model's inputs (evidence as {kind}, "
        f"{'with' if model.lowres_scheduler else 'without'} noise level, {'with' if model.sees_canvas else 'without'} "
        "canvas in latents); it stays here"
    )
