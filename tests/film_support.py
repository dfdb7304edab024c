"""``infer.py`` in processes of its own, started by a fork server that has loaded the modules, to be killed at will."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from tests.cli_support import call, read_pixels
from tests.fork_support import forks
from tests.video_io_support import pan, write_clip

SIZE = (32, 48)
FRAMES = 43
SEGMENTS = ("segment=7", "chain=2", "--overlap", "2", "--window", "4")
"""With :data:`FRAMES`: nine segments in five chains."""


def restore_to(folder: Path, clip: Path, bundle: Path) -> Callable[..., int]:
    """``restore("hd.mkv", *options)``: infer.py here, on a clip of several segments; returns the exit code."""
    import infer

    def run(name: str, *options: object, source: Path = clip, segments: tuple[str, ...] = SEGMENTS) -> int:
        given = ("--input", source, "--output", folder / name, "--model", bundle, "--scale", 1, "--codec", "ffv1")
        return call(infer, *given, *segments, *options)

    return run


def write_one_segment(folder: Path) -> Path:
    """A clip of which the output could be made at once, in a folder of its own, named as other outputs are."""
    return write_clip(folder / "archive" / "hd.mkv", pan(3, *SIZE), codec="ffv1")


def run_infer(arguments: list[str], environment: Mapping[str, str], printed: str) -> None:
    """What the process does: ``infer.py`` with its output in the file ``printed``."""
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests run in the background of a shell ignore it
    import torch

    import infer
    from ldm_video.core.errors import run_cli

    torch.set_num_threads(1)
    sys.argv = ["infer.py", *arguments]
    run_cli(infer.main)


class Runs:
    """Starts runs of ``infer.py`` on one clip with one model."""

    def __init__(self, clip: Path, bundle: Path, folder: Path) -> None:
        self.clip, self.bundle, self.folder = clip, bundle, folder
        self.printed = folder / "printed.txt"

    def start(self, output: Path, *options: object, environment: Mapping[str, str] | None = None) -> BaseProcess:
        arguments = [
            "--input",
            self.clip,
            "--output",
            output,
            "--model",
            self.bundle,
            "--scale",
            2,
            *SEGMENTS,
            *options,
        ]
        self.printed.write_text("")
        process = forks.Process(
            target=run_infer, args=([*map(str, arguments)], dict(environment or {}), str(self.printed))
        )
        process.start()
        return process

    def run(self, output: Path, *options: object, environment: Mapping[str, str] | None = None) -> int | None:
        """To the end; returns the exit code."""
        process = self.start(output, *options, environment=environment)
        process.join()
        return process.exitcode

    @property
    def lines(self) -> list[str]:
        """What the last run has printed."""
        return self.printed.read_text().splitlines()


def parts_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")


def finished_parts(output: Path) -> list[Path]:
    return sorted(parts_folder(output).glob("*.result"))


def wait_until(condition: Callable[[], bool], process: BaseProcess, seconds: float = 60) -> None:
    """Poll ``condition`` while ``process`` lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end, "it ended or hung before the condition was met"
        time.sleep(0.005)


def same_frames(a: Path, b: Path) -> bool:
    return np.array_equal(read_pixels(a), read_pixels(b))
