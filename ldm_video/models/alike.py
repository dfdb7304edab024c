"""Whether two models are one model in two states, as training leaves it: what a mean of their weights supposes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ldm_video.diffusion.process import unlike_option
from ldm_video.models.video_model import VideoModel

# Of how a model is used or trained; with what is under "_", of who wrote the file, they change no weight's meaning.
_FREE = {"share", "every", "dropout", "sample_size", "force_upcast"}


def difference(one: VideoModel, other: VideoModel) -> str | None:
    """The first fact in which two models differ, by its place in a bundle; None where they may be of one start.

    Weights and their shapes are not looked at, nor are solver, spacing of the steps and defaults of sampling.
    """
    first, second = dict(_facts(one)), dict(_facts(other))
    # Codecs of two kinds have other options, too: a name that one of them lacks is a difference.
    unlike = (key for key in {**first, **second} if first.get(key, "") != second.get(key, ""))
    return next(unlike, None) or _unlike_process(one, other)


def _unlike_process(one: VideoModel, other: VideoModel) -> str | None:
    for name in ("scheduler", "lowres_scheduler"):
        pair = [getattr(model, name) for model in (one, other)]
        if None in pair:
            if pair[0] is not pair[1]:
                return name
        elif option := unlike_option(*pair):
            return f"{name}'s {option}"
    return None


def _facts(model: VideoModel) -> Iterator[tuple[str, str]]:
    """Every option of the parts, as ``part's option`` and its value in JSON, in which tuples and lists are one."""
    denoiser = model.denoiser.config
    parts = {"denoiser": {**denoiser["unet"], **denoiser["temporal"]}, "codec": model.codec.config}
    parts["layout"] = {**asdict(model.layout), "sees_canvas": model.sees_canvas}
    for part, options in parts.items():
        yield from ((f"{part}'s {key}", json.dumps(value)) for key, value in _binding(options).items())


def _binding(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if not key.startswith("_") and key not in _FREE}
