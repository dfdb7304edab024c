"""Check whether two models are states of the same model, as averaging their weights requires."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ldm_video.diffusion.process import unlike_option
from ldm_video.models.video_model import VideoModel

# Options for use or training. Like keys with a leading "_" (who wrote the file), they do not affect what weights mean.
_IGNORED = {"share", "every", "dropout", "sample_size", "force_upcast"}


def difference(one: VideoModel, other: VideoModel) -> str | None:
    """Return the first option in which two models differ, by its name in a bundle; None if they may share an origin.

    Weights and their shapes are not compared, nor are solver, step spacing and sampling defaults.
    """
    first, second = dict(_all_options(one)), dict(_all_options(other))
    # Different kinds of codecs have different options: an option that only one of them has is a difference.
    differing = (key for key in {**first, **second} if first.get(key, "") != second.get(key, ""))
    return next(differing, None) or _process_difference(one, other)


def _process_difference(one: VideoModel, other: VideoModel) -> str | None:
    for name in ("scheduler", "lowres_scheduler"):
        pair = [getattr(model, name) for model in (one, other)]
        if None in pair:
            if pair[0] is not pair[1]:
                return name
        elif option := unlike_option(*pair):
            return f"{name}'s {option}"
    return None


def _all_options(model: VideoModel) -> Iterator[tuple[str, str]]:
    """Yield every option of the parts as ``part's option`` and its JSON value, in which tuples and lists are equal."""
    denoiser = model.denoiser.config
    parts = {"denoiser": {**denoiser["unet"], **denoiser["temporal"]}, "codec": model.codec.config}
    parts["layout"] = {**asdict(model.layout), "sees_canvas": model.sees_canvas}
    for part, options in parts.items():
        yield from ((f"{part}'s {key}", json.dumps(value)) for key, value in _compared(options).items())


def _compared(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if not key.startswith("_") and key not in _IGNORED}
