"""Pack files into tar shards in WebDataset's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import webdataset

from data.prepare_parts.options import PrepareOptions
from data.prepare_parts.report import Report
from ldm_video.core.files import atomic_path

_SUFFIXES = ("json", "mp4", "txt")


def pack(staging: Path, out: Path, report: Report, options: PrepareOptions, last: bool) -> None:
    """Move staged clips into ``out/shard-000000.tar``, ...: only full shards, or with ``last`` all clips.

    A shard is written before the report names it, and its files are deleted afterwards, so a run that was killed in
    between rewrites the same shard.
    """
    while True:
        waiting = [clip for clip in report.clips if "shard" not in clip]
        batch, full = _next_batch(waiting, staging, options)
        if not batch or not (full or last):
            return
        name = f"shard-{len({clip['shard'] for clip in report.clips if 'shard' in clip}):06d}.tar"
        with atomic_path(out / name) as temporary, webdataset.TarWriter(str(temporary), mtime=0) as tar:
            for clip in batch:
                tar.write({"__key__": clip["key"], **_members(staging, clip["key"])})
        for clip in batch:
            clip["shard"] = name
        report.save()
        for clip in batch:
            for suffix in _SUFFIXES:
                (staging / f"{clip['key']}.{suffix}").unlink(missing_ok=True)


def _next_batch(
    waiting: list[dict[str, Any]], staging: Path, options: PrepareOptions
) -> tuple[list[dict[str, Any]], bool]:
    """Return the clips of the next shard, and whether they fill it."""
    size = 0
    for count, clip in enumerate(waiting, start=1):
        size += (staging / f"{clip['key']}.mp4").stat().st_size
        if count == options.shard_clips or size >= options.shard_megabytes * 1_000_000:
            return waiting[:count], True
    return waiting, False


def _members(staging: Path, key: str) -> dict[str, bytes]:
    paths = {suffix: staging / f"{key}.{suffix}" for suffix in _SUFFIXES}
    return {suffix: path.read_bytes() for suffix, path in paths.items() if path.is_file()}
