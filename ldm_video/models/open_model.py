"""Open a model by name: our bundle, a Stable Diffusion folder (local or on the hub, both), or a single file."""

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
"""No temporal layers: untrained ones change nothing and cost time."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_BUNDLE_FILES = ["denoiser/*.safetensors", "codec/*.safetensors", "text/*.safetensors"]


def open_model(
    name: str | Path, revision: str | None = None, variant: str | None = None, temporal: TemporalConfig | None = None
) -> VideoModel:
    """Open a model in float32 on the CPU, frozen and in evaluation mode.

    Args:
        name: a folder (one of our bundles or a Stable Diffusion pipeline of diffusers), a single ``.safetensors`` file
            in the CompVis layout, or the hub's ``owner/name`` or ``owner/name@revision``.
        revision: branch, tag or commit on the hub; ``@revision`` in the name takes precedence.
        variant: of a pipeline's weights, such as ``fp16``; None uses the plain weights of each part or, if there are
            none, its only variant.
        temporal: temporal layers to add to a Stable Diffusion checkpoint, initialised as the identity; None for the
            default ones.

    Raises ``UserError`` for a name that cannot be resolved, a pickle, and weights that do not fit.
    """
    path = find_model(name, revision, variant)
    if path.is_file():
        return _ready(to_video(read_single_file(path), temporal or TemporalConfig()))
    if not _is_pipeline(path):
        return load_bundle(path)
    return _ready(to_video(read_pipeline(path, variant), temporal or TemporalConfig()))


def find_model(name: str | Path, revision: str | None = None, variant: str | None = None) -> Path:
    """Return the folder or file that :func:`open_model` reads; for a hub name, the copy in the hub's cache.

    Missing files are downloaded, unless ``HF_HUB_OFFLINE`` is set. Raises ``UserError`` for a pickle and if the hub
    fails.
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
        raise UserError(f"{name} is not a model bundle or file here, nor on the hub: {reason}") from error


def _download(repository: str, revision: str | None, variants: Mapping[str, str]) -> Path:
    """Return the folder in the hub's cache, named after the commit, with the given variant of each part's weights."""
    # The star also matches slashes: JSON and text files of all parts, including tokenizers.
    patterns = ["*.json", "*.txt", *weight_patterns(variants), *_BUNDLE_FILES]
    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


def _only_variants(repository: str, folder: Path) -> dict[str, str]:
    """Return part -> variant for downloaded parts that lack weights and of which the hub has exactly one variant."""
    bare = [
        part for part in WEIGHTS if (folder / part / "config.json").is_file() and not stored_variants(folder / part)
    ]
    if not bare:
        return {}
    try:
        files = list_repo_files(repository, revision=folder.name)
    except Exception:  # no network; the class depends on the hub's HTTP library
        return {}  # reading reports what is missing
    names = {part: [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/")] for part in bare}
    found = {part: variants_of(part, names[part]) for part in bare}
    return {part: variants.pop() for part, variants in found.items() if len(variants) == 1}


def is_bundle(path: Path) -> bool:
    """Return whether a path from :func:`find_model` is one of our bundles, whose temporal layers are fixed."""
    return (path / INDEX).is_file() and not _is_pipeline(path)


def _ready(model: VideoModel) -> VideoModel:
    return model.eval().requires_grad_(False)


def _is_pipeline(folder: Path) -> bool:
    index = folder / INDEX
    return index.is_file() and str(read_json(index).get("_class_name")).startswith("StableDiffusion")
