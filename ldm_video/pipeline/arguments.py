"""The command line of ``infer.py``. Imports no heavy library, so that usage errors and ``--help`` appear at once."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_video.core.errors import ArgumentParser, UserError

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = PACKAGE / "weights" / "small-x4"
DEFAULTS = PACKAGE.parent / "configs" / "infer" / "default.yaml"
DESCRIPTION = "Turn a masked SD clip into an HD clip: python infer.py --input sd.mp4 --output hd.mp4."

DEINTERLACE = ("auto", "on", "off")
PROPAGATE = ("auto", "on", "off")
FILL = ("auto", "patches", "model")


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=DESCRIPTION)
    parser.add_argument("--input", required=True, help="video, folder of frames, picture, or folder of videos")
    parser.add_argument("--output", required=True, help="video, folder for PNG files, or picture")
    parser.add_argument("--mask", type=Path, help="picture, folder or video; white = fill, black = keep")
    parser.add_argument("--box", action="append", default=[], metavar="x,y,w,h", help="fill this box; may repeat")
    parser.add_argument("--prompt", help="what to fill the mask with, and what the clip shows")
    parser.add_argument("--prompt-file", metavar="FILE", help="lines FRAME: PROMPT, each from its frame on")
    parser.add_argument("--negative-prompt", help="what not to show")
    parser.add_argument("--model", help="bundle, Stable Diffusion folder or file, or hub name[@revision]")
    parser.add_argument("--lora", action=_Once, metavar="PATH[:SCALE]", help="one adapter to merge into the model")
    parser.add_argument("--config", default=DEFAULTS, type=find_config, help="fast, quality, or a YAML file like them")
    parser.add_argument("--scale", type=float, help="enlargement; 1 inpaints without changing the size")
    parser.add_argument("--height", type=int, help="height of the output, instead of --scale")
    parser.add_argument("--steps", type=int, help="sampling steps; 0: the decoder alone, if it sees the clip")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance scale")
    parser.add_argument("--noise-level", type=int, help="of the low-res pixels, for the SD x4-upscaler")
    parser.add_argument("--strength", type=float, help="share of the steps to run, from the resized input")
    parser.add_argument("--seed", type=int, help="of the noise")
    parser.add_argument("--window", type=int, help="frames that the model sees at once")
    parser.add_argument("--overlap", type=int, help="frames that neighbouring windows share")
    parser.add_argument("--tile", metavar="HxW", help="work in tiles of this size, in output pixels: less memory")
    parser.add_argument("--memory", metavar="AMOUNT", help="8GB, 900MB or auto: choose tile and segments that fit")
    parser.add_argument("--propagate", choices=PROPAGATE, help="what other frames show inside the mask is taken")
    parser.add_argument("--fill", choices=FILL, help="who fills wide holes; auto: patches, but a model with a prompt")
    parser.add_argument("--deinterlace", choices=DEINTERLACE)
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", help="auto, fp32, bf16, fp16")
    parser.add_argument("--attention", help="auto, sdpa, xformers")
    parser.add_argument("--codec", help="libx264, libx265, libsvtav1, prores_ks, ffv1")
    parser.add_argument("--crf", type=int, help="quality of the output's codec; lower is better")
    parser.add_argument("--compare", action="store_true", help="also write resized input and result side by side")
    parser.add_argument("--preview", action="store_true", help="a tenth of the frames, in OUTPUT.preview")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--share", metavar="K/N", help="do the K-th of N shares of the clip; others do the rest")
    parser.add_argument("--restart", action="store_true", help="start over, whatever an earlier run has kept")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the plan, write nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
    return parser.parse_intermixed_args(_join_negative_values(sys.argv[1:] if words is None else words))


class _Once(argparse.Action):
    """An option that may not repeat, where the one before would be dropped in silence."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice, and one is taken; leave the other out")
        setattr(namespace, self.dest, values)


def _join_negative_values(words: Sequence[str]) -> list[str]:
    """Turn ``--box -5,0,9,9`` into ``--box=-5,0,9,9``: argparse takes a word with a leading minus for an option."""
    joined: list[str] = []
    for word in words:
        if re.match(r"-\d+,", word) and joined and re.fullmatch(r"--\w+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def find_config(text: str) -> Path:
    """Return the path ``text``, or ``configs/infer/TEXT.yaml`` for a bare name that exists only there."""
    given, named = Path(text), DEFAULTS.parent / f"{text}.yaml"
    return named if given.name == text and named.exists() and not given.exists() else given


def check_input(arguments: argparse.Namespace) -> None:
    """Raise ``UserError`` for a missing input, before the heavy libraries are loaded."""
    if not Path(arguments.input).exists():
        raise UserError(f"{arguments.input} does not exist; check the path")
