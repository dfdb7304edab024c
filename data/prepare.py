"""Make training clips from films: ``python -m data.prepare SRC OUT [--shards] [key=value ...]``.

Splits every video under SRC at shot cuts, drops useless segments (static, black, blurred, short or small), crops black
bars, and writes near-lossless H.264 clips that allow fast random access: files in OUT, or with ``--shards`` tar shards
for WebDataset. ``film.txt`` beside ``film.mp4`` becomes the caption of its clips. OUT/report.json says what was dropped
and why. Running the same command again resumes an interrupted run. The keys are the attributes of
``data.prepare_parts.options.PrepareOptions``, documented there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.cache import find_sources
from data.prepare_parts.encode import write_pieces
from data.prepare_parts.options import PrepareOptions, parse_options
from data.prepare_parts.pack import pack
from data.prepare_parts.pieces import find_pieces
from data.prepare_parts.report import Report
from data.prepare_parts.survey import survey
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.core.files import sweep
from ldm_video.video_io.container import VIDEO_SUFFIXES

_STAGING = ".staging"


def main() -> None:
    """Read the command line, prepare what is not done yet, and print a summary."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC", help="a folder of videos, searched recursively")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of the clips or shards")
    parser.add_argument("--shards", action="store_true", help="write tar shards in place of single files")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options, for example crf=16 min_side=256")
    arguments = parser.parse_intermixed_args()
    options = parse_options(arguments.overrides)
    print(prepare(arguments.source, arguments.out, arguments.shards, options).summary())


def prepare(source: Path, out: Path, shards: bool, options: PrepareOptions) -> Report:
    """Prepare every video under ``source`` that the report in ``out`` does not list as done.

    An unreadable file is listed in the report and skipped. Raises ``UserError`` for a ``source`` without videos, an
    ``out`` that lies inside it or holds the results of other options, and a full disk.
    """
    videos = _find_videos(source, out)
    report = Report(out, options, shards)
    folder = out / _STAGING if shards else out
    sweep(folder)  # temporary files of a killed run
    waiting = {name: path for name, path in videos.items() if not report.done(name)}
    with _progress() as progress:
        task = progress.add_task("preparing", total=len(videos), completed=len(videos) - len(waiting))
        results = _each_source(waiting, folder, options)
        for name, result in zip(waiting, results, strict=True):
            report.sources[name] = result
            report.save()
            if shards:
                pack(folder, out, report, options, last=False)
            progress.update(task, advance=1, description=name)
    if shards:
        pack(folder, out, report, options, last=True)
        # All clips are packed. A killed run may have left packed clips, or those of an unfinished source, behind.
        shutil.rmtree(folder, ignore_errors=True)
    report.save()
    return report


def prepare_source(path: Path, name: str, folder: Path, options: PrepareOptions) -> dict[str, Any]:
    """Survey one video and write its good pieces into ``folder``; return its entry for the report."""
    try:
        seen = survey(path, options.cut)
    except UserError as error:
        return {"error": str(error)}
    pieces = find_pieces(seen, options)
    clips = write_pieces(path, name, pieces, seen.rate, folder, options)
    dropped = [{"start": p.start, "stop": p.stop, "reason": p.reason} for p in pieces if p.reason]
    entry: dict[str, Any] = {"frames": len(seen.luma), "clips": clips, "dropped": dropped}
    return entry | ({"damaged_packets": seen.damage} if seen.damage else {})


def _find_videos(source: Path, out: Path) -> dict[str, Path]:
    """Return path relative to ``source`` -> file, sorted."""
    if not source.is_dir():
        raise UserError(f"SRC {source} is not a folder; give a folder of videos")
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"OUT {out} lies in SRC {source}, where it would be searched for videos; choose another OUT")
    found = [path for path in find_sources(source) if path.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        raise UserError(f"there is no video in {source}; it may contain {', '.join(sorted(VIDEO_SUFFIXES))}")
    return {path.relative_to(source).as_posix(): path for path in found}


def _each_source(videos: dict[str, Path], folder: Path, options: PrepareOptions) -> Iterator[dict[str, Any]]:
    """Yield the report entries of the sources, in their order."""
    work = partial(_prepare_named, folder=folder, options=options)
    if options.jobs == 1:
        yield from map(work, videos.items())
        return
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, videos.items())


def _prepare_named(video: tuple[str, Path], folder: Path, options: PrepareOptions) -> dict[str, Any]:
    return prepare_source(video[1], video[0], folder, options)


def _progress() -> Progress:
    name = TextColumn("{task.description}", markup=False)
    return Progress(name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True))


if __name__ == "__main__":
    run_cli(main)
