"""Turn a masked SD clip into an HD clip: ``python infer.py --input sd.mp4 --output hd.mp4``."""

from __future__ import annotations

import io
import signal
import sys
from types import FrameType
from typing import NoReturn

from ldm_video.core.errors import run_cli
from ldm_video.pipeline.arguments import DEFAULTS, check_input, parse_arguments
from ldm_video.pipeline.settings import read_config


def main() -> None:
    """Read the command line, then load the libraries, which takes seconds, and run."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # for names that the terminal cannot show
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
    """Stop as Ctrl-C does, so that unfinished work is cleaned up; the number decides the exit code."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    run_cli(main)
