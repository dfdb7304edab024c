"""Measure the training clips made per core: ``python -m eval.bench.data_throughput --root CLIPS [--rounds 5]``.

Two pipelines take turns in one process, on one thread, over the same items: one decodes clips from tar shards, the
other holds the decoded frames in memory (no tar, demuxing or decoding; all else is bit-identical). Their ratio is the
cost of decoding. Times are CPU times, so that other load on the machine hardly matters. CLIPS is a folder of videos,
which are packed into a shard unchanged, or a folder of shards.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from rich.console import Console
from rich.table import Table

from data.shards import ShardDataset
from ldm_video.core.errors import ArgumentParser, UserError, run_cli

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov")


@dataclass(frozen=True)
class Rates:
    """Clips per second and core, medians over the rounds: ``decoding`` from shards, ``held`` decoded in memory."""

    decoding: float
    held: float

    @property
    def ratio(self) -> float:
        """Speed-up without decoding."""
        return self.held / self.decoding


def main() -> None:
    """Read the command line, measure, print a table."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder of videos, or of tar shards")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="side of the high-res crop")
    parser.add_argument("--degrade", default="sd", help="a preset of data.degrade")
    parser.add_argument("--items", type=int, default=24, help="clips in a round; their frames are held in memory")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.items < 1 or arguments.rounds < 1:
        raise UserError("--items and --rounds must be 1 or more")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        shards, cache = as_shards(arguments.root, Path(scratch)), Path(scratch) / "cache"
        dataset = ShardDataset(
            shards, frames=arguments.frames, size=arguments.size, degrade=arguments.degrade, cache=cache
        )
        rates = measure(dataset, arguments.items, arguments.rounds)
    table = Table(
        title=f"{arguments.frames} frames of {arguments.size}x{arguments.size}, {arguments.degrade}, one core"
    )
    for column in ("pipeline", "clips/s/core", "ms/clip"):
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    for name, rate in (("decoding from shards", rates.decoding), ("decoded frames in memory", rates.held)):
        table.add_row(name, f"{rate:.2f}", f"{1000 / rate:.1f}")
    Console().print(table)
    print(f"without decoding it goes {rates.ratio:.2f} times as fast")


def as_shards(root: Path, scratch: Path) -> Path:
    """Return ``root`` if it holds shards, else ``scratch`` with its videos packed into one shard.

    Raises ``UserError`` if there is no such folder or it holds neither.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; give one of videos or of tar shards")
    if any(root.glob("*.tar")):
        return root
    videos = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not videos:
        raise UserError(f"{root} holds neither .tar shards nor videos ({', '.join(SUFFIXES)})")
    with webdataset.TarWriter(str(scratch / "clips.tar"), mtime=0) as tar:
        for number, path in enumerate(videos):
            tar.write({"__key__": f"{number:04d}", path.suffix[1:].lower(): path.read_bytes()})
    return scratch


def measure(dataset: ShardDataset, items: int, rounds: int) -> Rates:
    """Time the same items with and without decoding, in turns; a recording round warms both up first.

    Raises ``RuntimeError`` if the two pipelines make different clips.
    """
    tape = Tape(dataset.read)
    dataset.read = tape.record  # type: ignore[method-assign]
    recorded = [dataset[index] for index in range(items)]
    seconds: dict[str, list[float]] = {"decoding": [], "held": []}
    for _ in range(rounds):
        for name, read in (("decoding", tape.read), ("held", tape.play)):
            dataset.read = read  # type: ignore[method-assign]
            tape.rewind()
            start = time.process_time()
            made = [dataset[index] for index in range(items)]
            seconds[name].append((time.process_time() - start) / items)
            if not all(
                torch.equal(torch.as_tensor(a["lr"]), torch.as_tensor(b["lr"]))
                for a, b in zip(recorded, made, strict=True)
            ):
                raise RuntimeError("the two pipelines do not make the same clips")
    return Rates(*(1 / statistics.median(seconds[name]) for name in ("decoding", "held")))


class Tape:
    """Recorded results of ``read``, in order: the frames, and the state in which it left the random generator."""

    def __init__(self, read: Any) -> None:
        self.read = read
        self._entries: list[tuple[np.ndarray, dict[str, Any]]] = []
        self._next = 0

    def record(self, sample: Any, rng: np.random.Generator) -> np.ndarray:
        frames = self.read(sample, rng)
        self._entries.append((frames, dict(rng.bit_generator.state)))
        return frames

    def play(self, sample: Any, rng: np.random.Generator) -> np.ndarray:
        frames, rng.bit_generator.state = self._entries[self._next]
        self._next += 1
        return frames

    def rewind(self) -> None:
        self._next = 0


if __name__ == "__main__":
    run_cli(main)
