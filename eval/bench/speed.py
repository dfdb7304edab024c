"""Compare seconds per frame with peers, in turns: ``python -m eval.bench.speed --input LOWRES_CLIP``.

Every method upscales the clip's first frames by 4 as a user would run it, from file to file. Each measurement takes two
runs of different length and divides their difference by the frames between them, so that start-up and loading cancel
out. Printed are medians over the rounds and, since other load on the machine varies, the ratio of each round's times to
ours.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eval.framewise import open_frames, open_output
from eval.methods import Method, Ours, Settings, find_methods, infer_options
from ldm_video.core.errors import ArgumentParser, UserError, run_cli

SCALE = 4
OURS = "ours"
SHORT = 32  # frames of our shorter run: one segment; a method that works frame by frame needs only one


@dataclass(frozen=True)
class Lengths:
    """Frames of the shorter and the longer run."""

    short: int
    long: int


def cut(source: Path, frames: int, target: Path) -> Path:
    """Write the first ``frames`` frames of ``source`` to ``target`` with a lossless codec and return ``target``.

    Raises ``UserError`` if there are fewer frames.
    """
    with open_frames(source) as reader, open_output(source, 1, target) as writer:
        count = 0
        for frame in islice(reader, frames):
            writer.write(frame.pixels)
            count += 1
        if count < frames:
            raise UserError(f"{source} has {count} frames and {frames} are needed; give a longer one or fewer --frames")
    return target


def seconds_a_frame(method: Method, clips: tuple[Path, Path], lengths: Lengths, folder: Path) -> float:
    """Return the cost of each frame beyond the shorter clip.

    A method that runs in this process keeps its weights loaded until another method replaces them. It is run once
    before, so that neither timed run loads them. Ours loads in both, each in its own process.
    """
    if not isinstance(method, Ours):
        method(clips[0], None, SCALE, folder / "output.mkv")
    times = []
    for clip in clips:
        started = time.perf_counter()
        method(clip, None, SCALE, folder / "output.mkv")
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / (lengths.long - lengths.short)


def measure(source: Path, methods: Sequence[Method], more: int, more_peers: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds per frame by method, one for each round; every round runs all methods."""
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = {}
        for method in methods:
            own = method.name.split()[0] == OURS
            lengths = Lengths(SHORT, SHORT + more) if own else Lengths(1, 1 + more_peers)
            names = [(frames, folder / f"{frames}.mkv") for frames in (lengths.short, lengths.long)]
            runs[method.name] = lengths, tuple(cut(source, frames, name) for frames, name in names)
        for _ in range(rounds):
            for method in methods:
                lengths, (first, second) = runs[method.name]
                found[method.name].append(seconds_a_frame(method, (first, second), lengths, folder))
    return found


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--input", type=Path, required=True, help="a low-res clip")
    parser.add_argument("--peers", default="real_esrgan_x4plus", help="methods of the benchmark, comma-separated")
    parser.add_argument("--model", help="a bundle; default: the shipped one")
    parser.add_argument("--device", default="cpu", help="where all of them run (default: %(default)s)")
    parser.add_argument("--also", metavar="OPTIONS", help='time ours with these options as well, such as "--steps 0"')
    parser.add_argument("--frames", type=int, default=60, help="of ours that are timed: two more segments")
    parser.add_argument("--peer-frames", type=int, default=2, help="of each peer that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if min(arguments.frames, arguments.peer_frames, arguments.rounds) < 1:
        raise UserError("--frames, --peer-frames and --rounds must be 1 or more")
    settings = Settings(model=arguments.model, device=arguments.device)
    methods = find_methods([OURS, *arguments.peers.split(",")], settings)
    if arguments.also:
        also = infer_options("--also", arguments.also)
        methods = [*methods, Ours(arguments.model, also, f"{OURS} {arguments.also}", device=arguments.device)]
    for method in methods:
        if reason := method.missing(SCALE):
            raise UserError(reason)
    found = measure(arguments.input, methods, arguments.frames, arguments.peer_frames, arguments.rounds)
    table = Table("method", "seconds a frame", "beside ours, by round", title=f"{arguments.input.name}, x{SCALE}")
    for name, seconds in found.items():
        ratios = [f"{own / ours:.1f}" for own, ours in zip(seconds, found[OURS], strict=True)]
        table.add_row(name, f"{statistics.median(seconds):.2f}", ", ".join(ratios))
    Console().print(table)


if __name__ == "__main__":
    run_cli(main)
