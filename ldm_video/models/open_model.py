"""A model by its name: our bundle, a Stable Diffusion folder, a single file, or either of the folders on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download

from ldm_video.core.checkpoints import INDEX, read_json, refuse_pickle
from ldm_video.core.errors import UserError
from ldm_video.models.bundle import load_bundle
from ldm_video.models.single_file import read_single_file
from ldm_video.models.stable_diffusion import read_pipeline, to_video
from ldm_video.models.temporal import TemporalConfig
from ldm_video.models.variants import PLAIN, WEIGHTS, stored_variants, variants_of, weight_patterns
from ldm_video.models.video_model import VideoModel

FRAME_BY_FRAME = TemporalConfig(attention_levels=(), conv_levels=())
"""No temporal layers: new ones change nothing until they are trained, and cost time."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_BUNDLE_FILES = ["denoiser/*.safetensors", "codec/*.safetensors", "text/*.safetensors"]


def open_model(
    name: str | Path, revision: str | None = None, variant: str | None = None, temporal: TemporalConfig | None = None
) -> VideoModel:
    """Open a model, in float32 on the CPU, in evaluation mode.

    Args:
        name: a folder (a bundle of ours or a Stable Diffusion pipeline of diffusers), a single ``.safetensors`` file
            in the CompVis layout, or the hub's ``owner/name``, also ``owner/name@revision``.
        revision: branch, tag or commit on the hub.
        variant: of a pipeline's weights, such as ``fp16``; None takes of each part the plain ones or, where there are
            none, those of the only variant.
        temporal: the temporal layers that a Stable Diffusion checkpoint is given; they start as the identity.

    Raises ``UserError`` for a name that leads nowhere, a pickle, and weights that do not fit.
    """
    path = find_model(name, revision, variant)
    if path.is_file():
        return _ready(to_video(read_single_file(path), temporal or TemporalConfig()))
    if not _is_pipeline(path):
        return load_bundle(path)
    return _ready(to_video(read_pipeline(path, variant), temporal or TemporalConfig()))


def find_model(name: str | Path, revision: str | None = None, variant: str | None = None) -> Path:
    """The folder or file that :func:`open_model` reads; of a hub's name, the copy in the hub's cache.

    What is missing there is downloaded, unless ``HF_HUB_OFFLINE`` is set.
    """
    path = Path(name)
    refuse_pickle(path)
    if path.exists() or not _HUB_ID.fullmatch(str(name)):
        return path
    repository, _, pinned = str(name).partition("@")
    try:
        folder = _download(repository, pinned or revision, dict.fromkeys(WEIGHTS, variant or PLAIN))
        if not variant and (others := _only_variants(repository, folder)):
            _download(repository, folder.name, others)
        return folder
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} is no model bundle or file here, nor can it be had from the hub: {reason}") from error


def _download(repository: str, revision: str | None, variants: Mapping[str, str]) -> Path:
    """The copy in the hub's cache, with the weights of these variants of the parts; its name is the commit."""
    # A pattern's star also matches a slash: the JSON and text files of all parts, tokenizers among them.
    patterns = ["*.json", "*.txt", *weight_patterns(variants), *_BUNDLE_FILES]
    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


def _only_variants(repository: str, folder: Path) -> dict[str, str]:
    """Of the parts of a download that have no weights, the variant, where the hub has one alone."""
    bare = [
        part for part in WEIGHTS if (folder / part / "config.json").is_file() and not stored_variants(folder / part)
    ]
    if not bare:
        return {}
    try:
        files = list_repo_files(repository, revision=folder.name)
    except Exception:  # no network, in the classes of whatever the hub speaks HTTP with
        return {}  # what is missing is named when it is read
    names = {part: [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/")] for part in bare}
    found = {part: variants_of(part, names[part]) for part in bare}
    return {part: variants.pop() for part, variants in found.items() if len(variants) == 1}


def is_bundle(path: Path) -> bool:
    """Whether what :func:`find_model` found is a bundle of ours, whose layers are what they are."""
    return (path / INDEX).is_file() and not _is_pipeline(path)


def _ready(model: VideoModel) -> VideoModel:
    return model.eval().requires_grad_(False)


def _is_pipeline(folder: Path) -> bool:
    index = folder / INDEX
    return index.is_file() and str(read_json(index).get("_class_name")).startswith("StableDiffusion")
