"""Settings of ``infer.py``: defaults, a file and the command line, checked before anything is opened."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from omegaconf import DictConfig

from ldm_video.config import load_config
from ldm_video.core.errors import UserError
from ldm_video.pipeline.arguments import DEINTERLACE, FILL, PROPAGATE
from ldm_video.pipeline.plan import JOINS

INTEGERS = (
    "height", "steps", "seed", "window", "overlap", "segment", "chain", "tile_overlap", "feather", "crf", "noise_level",
    "prompt_blend", "average", "steady",
)  # fmt: skip
NUMBERS = ("scale", "guidance", "dilate", "strength", "fidelity")
CHOICES = {
    "deinterlace": DEINTERLACE,
    "join": JOINS,
    "cuts": ("auto", "off"),
    "propagate": PROPAGATE,
    "fill": FILL,
}
RANGES = {
    "segment": (1, math.inf),
    "chain": (1, math.inf),
    "overlap": (0, math.inf),
    "prompt_blend": (0, math.inf),
    # Values above are mistakes: frames, or pixels of a whole picture.
    "average": (0, 1000),
    "steady": (0, 1000),
    "tile_overlap": (0, 4096),
    "feather": (0, 1024),
    "dilate": (0, 256),
}


def read_config(arguments: argparse.Namespace, defaults: Path) -> DictConfig:
    """Merge ``defaults``, the file of ``--config`` and the command line; every key known, every value checked.

    Raises ``UserError`` for an unknown key or an invalid value.
    """
    known = load_config(defaults)
    overrides = [*flag_overrides(arguments, known), *arguments.overrides]
    config = load_config(arguments.config, overrides, base=defaults)
    for name, on in (("deinterlace", "on"), ("propagate", "on"), ("cuts", "auto")):
        if isinstance(config[name], bool):  # YAML reads a bare on or off as a boolean
            config[name] = on if config[name] else "off"
    check_values(config, known)
    check_choices(config)
    return config


def flag_overrides(arguments: argparse.Namespace, known: DictConfig) -> list[str]:
    """Return the command-line flags that are ``known`` keys, as overrides. Text is quoted for YAML."""
    given = {name: value for name, value in vars(arguments).items() if name in known and value is not None}
    return [f"{name}={_quoted(value) if isinstance(value, str) else value}" for name, value in given.items()]


def check_values(config: DictConfig, defaults: DictConfig) -> None:
    """Raise ``UserError`` for a value of the wrong type or out of range. null is allowed where it is the default."""
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
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} is {value!r}; give a finite number")
        least, most = RANGES.get(key, (-math.inf, math.inf))
        if isinstance(value, int | float) and not least <= value <= most:
            raise UserError(f"{key} is {value!r}; give {f'{least} or more' if value < least else f'{most} or less'}")


def check_choices(config: DictConfig) -> None:
    """Raise ``UserError`` for a value that is not one of its key's choices."""
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise UserError(f"unknown {name} '{config[name]}'; use {', '.join(choices)}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''").replace("${", "\\${") + "'"
