"""Clips from WebDataset tar shards: ``KEY.mp4``, with optional ``KEY.txt`` (caption) and ``KEY.json`` (metadata).

An uncompressed tar file allows random access once the offsets of its members are known. So the shards are indexed once
and served by a map-style dataset instead of WebDataset's stream through a shuffle buffer. An item is a pure function of
(seed, index), processes and workers split the indices as for a folder, and an interrupted run resumes at the exact
clip. Each epoch visits every clip once, in a permutation of all shards drawn from (seed, epoch). The format, names and
patterns are those of WebDataset. The price: a remote shard is fetched as a whole, once, before the first step. A
cluster can share the copies by keeping the cache on a shared disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import torch
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from data.cache import decode_caption, looking
from data.clips import DEFAULT_CACHE, ClipStream, Item
from data.encoded import EncodedVideo
from ldm_video.core.checks import places
from ldm_video.core.errors import UserError
from ldm_video.core.files import DISK_FULL, atomic_path
from ldm_video.core.locks import first_to_make
from ldm_video.video_io.container import VIDEO_SUFFIXES

log = logging.getLogger(__name__)

_FORMAT = "2"  # increment when the index of the same shard would change
_FETCH_ATTEMPTS = 3  # attempts to fetch a remote shard
_MAX_ATTEMPTS = 100  # clips to try, counting the first, before giving up


class Span(NamedTuple):
    """A byte range of a file: offset and length."""

    start: int
    size: int


class Sample(NamedTuple):
    """A clip of a shard: the location of its video and, if it has one, of its caption."""

    shard: Path
    key: str
    video: Span
    caption: Span | None


class ShardDataset(ClipStream):
    """Clips of ``frames`` frames from tar shards; items are like those of :class:`data.clips.ClipDataset`.

    Args:
        root: one or more patterns of shards: a file, a folder (all its ``.tar`` files), a brace pattern
            (``clips-{000..127}.tar``) or a URL that fsspec reads (``https://``, ``s3://``, ``hf://``, ...; braces too).
        cache: parent of the folder ``shards``, which holds the indices and the copies of remote shards; ``None`` is
            ``~/.cache/ldm-video``.
        options: those of :class:`data.clips.ClipStream`.

    A clip that cannot be decoded, is too small or too short is skipped and replaced by another, drawn from
    (seed, index). ``skipped`` counts these over all workers. ``damaged`` counts the shards that are truncated or not
    tar files; their intact clips are used. Raises ``UserError`` for a missing or unreachable shard, when the shards
    hold no clip, and when 100 clips in a row are unusable.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        cache: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        folder = Path(DEFAULT_CACHE if cache is None else cache).expanduser() / "shards"
        roots = places("root", root)
        self.samples: list[Sample] = []
        faults = []
        shards = [local_copy(url, folder) for pattern in roots for url in expand(str(pattern))]
        for shard in shards:
            if self.samples and looking():
                break
            samples, fault = index_shard(shard, folder)
            self.samples += samples
            faults += [f"{shard} ({fault})"] if fault else []
        self.damaged = len(faults)
        if faults:
            log.warning("%d damaged shards, of which the whole clips are used: %s", self.damaged, "; ".join(faults))
        if not self.samples and all(shard.is_file() for shard in shards):
            raise UserError(f"no clip in {', '.join(map(str, roots))}; shards hold KEY.mp4 and, if wanted, KEY.txt")
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self._skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # one count for all workers

    @property
    def skipped(self) -> int:
        """Number of times a clip was skipped so far."""
        return int(self._skipped)

    def __getitem__(self, index: int) -> Item:
        if index < 0:
            raise IndexError(index)
        for attempt in range(_MAX_ATTEMPTS):
            rng = np.random.default_rng([self.seed, index, attempt])
            sample = self.samples[rng.integers(len(self.samples))] if attempt else self.sample(index)
            try:
                return self._make(sample, rng)
            except UserError as error:
                self._skipped += 1
                log.warning("%s; skipped, %d so far", error, self.skipped)
        raise UserError(f"{_MAX_ATTEMPTS} clips in a row could not be used; the last: {sample.key} of {sample.shard}")

    def sample(self, index: int) -> Sample:
        """Return the clip of an index: each epoch is a permutation of all clips, drawn from (seed, epoch)."""
        epoch, position = divmod(index, len(self.samples))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        return self.samples[self._order[position]]

    def read(self, sample: Sample, rng: np.random.Generator) -> np.ndarray:
        """Decode randomly drawn frames of a clip, ``t h w c`` uint8; raises ``UserError`` for an unusable clip."""
        with EncodedVideo(_read(sample.shard, sample.video), f"clip {sample.key} of {sample.shard}") as video:
            if len(video) < self.frames:
                raise UserError(f"{video.name} has {len(video)} frames, fewer than {self.frames}")
            frames = video[self.draw_times(len(video), self.cut_frames, rng)]
        if fault := self.unfit(*frames.shape[:3]):
            raise UserError(f"{video.name} {fault}")
        return frames

    def _make(self, sample: Sample, rng: np.random.Generator) -> Item:
        frames = self.read(sample, rng)
        caption = decode_caption(_read(sample.shard, sample.caption)) if sample.caption else ""
        return self.make_item(self.cut_video(frames, rng), sample.key, caption, rng)


def expand(pattern: str) -> list[str]:
    """Return the shards that a pattern names: braces as in WebDataset, or all ``.tar`` files of a folder.

    Raises ``UserError`` for a ``pipe:`` pattern.
    """
    if pattern.startswith("pipe:"):
        raise UserError(f"{pattern}: a configuration is data and starts no command; give a URL (s3://, https://, ...)")
    if "://" not in pattern and (folder := Path(pattern).expanduser()).is_dir():
        return [str(path) for path in sorted(folder.glob("*.tar")) if path.name[0] != "."]
    return list(expand_urls(pattern))


def local_copy(url: str, folder: Path) -> Path:
    """Return the local file of a shard; fetch it into ``folder`` if it is remote and not there yet.

    A copy is identified by its URL alone, so that a run needs no network once it has all copies: the content of a URL
    must not change. Within :func:`data.cache.headers_only` nothing is fetched, and the returned file may not exist.
    Raises ``UserError`` for a missing or unreachable shard and when the cache cannot be written.
    """
    path = Path(url.removeprefix("file://")).expanduser()
    if "://" not in str(url).removeprefix("file://"):
        if not path.is_file():
            raise UserError(f"shard {path} does not exist; set data.root to tar files, a brace pattern or a folder")
        return path
    name = url.split("?")[0].rsplit("/", 1)[-1]
    copy = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if copy.is_file() or looking():
        return copy
    try:
        with first_to_make(copy) as missing:  # all processes request the same shards at once
            if missing:
                with atomic_path(copy) as temporary:
                    _fetch(url, temporary)
    except OSError as error:
        raise UserError(f"the cache of shards {folder} cannot be used ({error.strerror}); set data.cache") from error
    return copy


def index_shard(path: Path, folder: Path) -> tuple[list[Sample], str]:
    """Return the clips of a tar file and its fault (empty if intact); cache both in ``folder``."""
    if looking() and not path.is_file():
        return [], ""
    state = path.stat()
    key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{_FORMAT}"
    entry = folder / f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not entry.is_file():
        samples, fault = _scan(path)
        if looking():
            return samples, fault
        with atomic_path(entry) as temporary:
            temporary.write_text(json.dumps({"fault": fault, "samples": [sample[1:] for sample in samples]}))
    content = json.loads(entry.read_text())
    return [
        Sample(path, key, Span(*video), Span(*caption) if caption else None)
        for key, video, caption in content["samples"]
    ], content["fault"]


def _scan(path: Path) -> tuple[list[Sample], str]:
    """Read the headers of a tar file, up to its end or the point of truncation."""
    groups: dict[str, dict[str, Span]] = {}
    last, fault, length = "", "", path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, extension = base_plus_ext(member.name)
                if not member.isreg() or key is None:
                    continue
                groups.setdefault(key, {})[extension.lower()] = Span(member.offset_data, member.size)
                last = key
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("cut off")
            fault = _end_fault(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        fault = str(error) or type(error).__name__
        groups.pop(last, None)  # the clip that is truncated
    samples = []
    for key, members in groups.items():
        videos = [span for extension, span in members.items() if f".{extension.split('.')[-1]}" in VIDEO_SUFFIXES]
        if videos:
            samples.append(Sample(path, key, videos[0], members.get("txt")))
    return samples, fault


def _end_fault(path: Path, at: int) -> str:
    """Return the fault where tarfile stopped, empty if none: it takes any unreadable header for the end."""
    with path.open("rb") as file:
        file.seek(at)
        block = file.read(tarfile.BLOCKSIZE)
    if not any(block) and len(block) == tarfile.BLOCKSIZE:
        return ""
    return "cut off" if len(block) < tarfile.BLOCKSIZE else f"damaged at byte {at}, nothing is read from there on"


def _read(path: Path, span: Span) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(span.start)
            return file.read(span.size)
    except OSError as error:
        raise UserError(f"cannot read shard {path} ({error.strerror}); it was there when the run began") from error


def _fetch(url: str, target: Path) -> None:
    for attempt in range(_FETCH_ATTEMPTS):
        try:
            filesystem, remote = fsspec.core.url_to_fs(url)
            filesystem.get_file(remote, str(target))
            return
        except Exception as error:  # each fsspec back end has its own exceptions
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            if attempt == _FETCH_ATTEMPTS - 1 or isinstance(error, FileNotFoundError | ImportError | ValueError):
                raise UserError(f"cannot fetch shard {url} ({type(error).__name__}: {error}); check the URL") from error
            log.warning("fetching %s failed (%s); trying again", url, error)
            time.sleep(2**attempt)
