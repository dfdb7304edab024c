"""A model by its name: our bundle, a Stable Diffusion folder, a single file, or either of the folders on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from ldm_video.core.checkpoints import INDEX, read_json, refuse_pickle
from ldm_video.core.errors import UserError
from ldm_video.models.bundle import load_bundle
from ldm_video.models.single_file import read_single_file
from ldm_video.models.stable_diffusion import read_pipeline, to_video
from ldm_video.models.temporal import TemporalConfig
from ldm_video.models.video_model import VideoModel

FRAME_BY_FRAME = TemporalConfig(attention_levels=(), conv_levels=())
"""No temporal layers: new ones change nothing until they are trained, and cost time."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_BUNDLE_FILES = ["denoiser/*.safetensors", "codec/*.safetensors", "text/*.safetensors"]
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def open_model(
    name: str | Path, revision: str | None = None, variant: str | None = None, temporal: TemporalConfig | None = None
) -> VideoModel:
    """Open a model, in float32 on the CPU, in evaluation mode.

    Args:
        name: a folder (a bundle of ours or a Stable Diffusion pipeline of diffusers), a single ``.safetensors`` file
            in the CompVis layout, or the hub's ``owner/name``, also ``owner/name@revision``.
        revision: branch, tag or commit on the hub.
        variant: of a pipeline's weights, such as ``fp16``; None takes the plain ones or, where there are none, those
            of the only variant.
        temporal: the temporal layers that a Stable Diffusion checkpoint is given; they start as the identity.

    Raises ``UserError`` for a name that leads nowhere, a pickle, and weights that do not fit.
    """
    path = find_model(name, revision, variant)
    if path.is_file():
        return _ready(to_video(read_single_file(path), temporal or TemporalConfig()))
    if not _is_pipeline(path):
        return load_bundle(path)
    variant = variant or _only_variant(path)
    return _ready(to_video(read_pipeline(path, variant), temporal or TemporalConfig()))


def find_model(name: str | Path, revision: str | None = None, variant: str | None = None) -> Path:
    """The folder or file that :func:`open_model` reads; of a hub's name, the copy in the hub's cache.

    What is missing there is downloaded, unless ``HF_HUB_OFFLINE`` is set.
    """
    path = Path(name)
    refuse_pickle(path)
    if path.exists() or not _HUB_ID.fullmatch(str(name)):
        return path
    owner_and_name, _, pinned = str(name).partition("@")
    tail = f".{variant}" if variant else ""
    weights = [
        f"{part}/{stem}{form}.safetensors"
        for part, stem in _WEIGHTS.items()
        for form in (tail, f"{tail}-*-of-*", f"-*-of-*{tail}" if tail else "-?????-of-?????")
    ]
    try:
        # A pattern's star also matches a slash: the JSON and text files of all parts, tokenizers among them.
        return Path(
            snapshot_download(
                owner_and_name,
                revision=pinned or revision,
                allow_patterns=["*.json", "*.txt", *weights, *_BUNDLE_FILES],
            )
        )
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} is no model bundle or file here, nor can it be had from the hub: {reason}") from error


def is_bundle(path: Path) -> bool:
    """Whether what :func:`find_model` found is a bundle of ours, whose layers are what they are."""
    return (path / INDEX).is_file() and not _is_pipeline(path)


def _ready(model: VideoModel) -> VideoModel:
    return model.eval().requires_grad_(False)


def _is_pipeline(folder: Path) -> bool:
    index = folder / INDEX
    return index.is_file() and str(read_json(index).get("_class_name")).startswith("StableDiffusion")


def _only_variant(folder: Path) -> str | None:
    """The variant of a folder whose UNet has no plain weights; None where it has, or where it has several variants."""
    names = [path.name.split(".") for path in (folder / "unet").glob("*.safetensors")]
    variants = {parts[1].split("-")[0] for parts in names if parts[1] != "safetensors"}
    plain = any(parts[1] == "safetensors" for parts in names)
    return None if plain or len(variants) != 1 else variants.pop()
