"""Turn a masked SD clip into an HD clip: ``python infer.py --input sd.mp4 --output hd.mp4``."""

from __future__ import annotations

import argparse
import io
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from ldm_video.core.errors import run_cli
from ldm_video.pipeline.arguments import DEFAULTS, SHIPPED, check_input, parse_arguments
from ldm_video.pipeline.settings import read_config

if TYPE_CHECKING:
    from ldm_video.pipeline.job import Job, Part
    from ldm_video.pipeline.restore import Restorer
    from ldm_video.video_io import VideoInfo

__all__ = ["DEFAULTS", "HERE", "SHIPPED", "main", "parse_arguments", "prepare"]

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Read the command line, then load the libraries, which takes seconds, and do it."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # of names that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, on_signal)
    try:
        check_input(arguments)
        config = read_config(arguments, DEFAULTS)
        from ldm_video.restoration import run

        run(arguments, config)
    except KeyboardInterrupt as stop:
        line = "; ".join(filter(None, ("interrupted", *(text for text in stop.args if isinstance(text, str)))))
        print(line, file=sys.stderr)
        number = next((n for n in stop.args if isinstance(n, int)), int(signal.SIGINT))
        raise SystemExit(128 + number) from None


def on_signal(number: int, frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does, so that what was begun is put away; the number decides the exit code."""
    raise KeyboardInterrupt(number)


def prepare(arguments: argparse.Namespace) -> tuple[VideoInfo, Job, Restorer, Part]:
    """What the command line asks for of one clip, checked and ready to run."""
    from ldm_video import restoration

    return restoration.prepare(arguments, read_config(arguments, DEFAULTS))


if __name__ == "__main__":
    run_cli(main)
