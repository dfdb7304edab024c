"""Measure peak memory against clip length: ``python -m eval.bench.memory [--long] [--model FOLDER] [infer options]``.

Runs ``infer.py`` in its own process on synthetic clips of 100 and 1,000 frames (``--long``: 10,000 too) and prints the
peak resident set size that the operating system reports. It should be the same for all.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from eval.measure import wait_for
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.video_io import VideoWriter

INFER = Path(__file__).resolve().parents[2] / "infer.py"
LENGTHS, LONG = (100, 1_000), 10_000


@dataclass(frozen=True)
class Result:
    """One run of ``infer.py``: ``peak`` resident memory in MiB, wall time in ``seconds``."""

    frames: int
    peak: float
    seconds: float


def main() -> None:
    """Measure and print the table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--long", action="store_true", help=f"also {LONG} frames")
    parser.add_argument("--size", default="48x32", metavar="WxH", help="of the input")
    arguments, options = parser.parse_known_args()
    width, height = read_size(arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        lengths = (*LENGTHS, LONG) if arguments.long else LENGTHS
        results = [measure(frames, (height, width), Path(folder), options) for frames in lengths]
    table = Table(title=f"infer.py on {width}x{height}, {' '.join(options) or 'no options'}")
    for heading in ("frames", "peak MiB", "beside the shortest", "frame/s"):
        table.add_column(heading, justify="right")
    for result in results:
        growth = 100 * (result.peak / results[0].peak - 1)
        rate = result.frames / result.seconds
        table.add_row(str(result.frames), f"{result.peak:.0f}", f"{growth:+.1f} %", f"{rate:.1f}")
    Console().print(table)


def read_size(text: str) -> tuple[int, int]:
    """Parse ``WxH`` into width and height; ``UserError`` if they are not positive integers."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"--size {text}: give width and height in pixels, such as 48x32")
    return int(width), int(height)


def measure(frames: int, size: tuple[int, int], folder: Path, options: list[str]) -> Result:
    """Run ``infer.py`` once and measure it; ``UserError`` if it fails."""
    clip, output = folder / f"{frames}.mp4", folder / f"{frames}-hd.mp4"
    write_clip(clip, frames, size)
    started = time.monotonic()
    command = [sys.executable, str(INFER), "--input", str(clip), "--output", str(output), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = wait_for(process)
    if process.returncode:
        raise UserError(f"infer.py ended with code {process.returncode}; its last line says why")
    return Result(frames, peak / 2**20, time.monotonic() - started)


def write_clip(path: Path, frames: int, size: tuple[int, int]) -> None:
    """Write a clip of a texture that moves to the left."""
    height, width = size
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.arange(width).float(), indexing="ij")
    with VideoWriter(path, size, None, Fraction(25), preset="ultrafast") as writer:
        for index in range(frames):
            wave = 0.8 * torch.sin((x + index) / 5)
            writer.write(torch.stack([wave, y, -wave]))


if __name__ == "__main__":
    run_cli(main)
