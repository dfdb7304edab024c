"""Clips from WebDataset tar shards: ``KEY.mp4``, with ``KEY.txt`` (a caption) and ``KEY.json`` (facts) if there are.

A tar file that is not compressed can be read anywhere once it is known where its members begin. So the shards are
indexed once and the data set is an ordinary one, item by number, in place of WebDataset's stream through a shuffle
buffer: an item is a pure function of (seed, epoch, index), processes and workers share the numbers out as they do for
a folder, and a run that was stopped goes on at the exact clip. Each epoch takes every clip once, in an order drawn from
(seed, epoch) over all shards. The format, the names and the patterns are WebDataset's own. The price: a remote shard
is fetched as a whole, once, before the first step; a cluster shares the copies by keeping the cache on a shared disk.
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

_FORMAT = "2"  # raised when the same shard would be indexed otherwise
_FETCHES = 3  # tries for a remote shard
_SUBSTITUTES = 100  # clips that are tried in the place of a broken one


class Span(NamedTuple):
    """Bytes of a file."""

    start: int
    size: int


class Sample(NamedTuple):
    """A clip of a shard: where its video is and, if it has one, its caption."""

    shard: Path
    key: str
    video: Span
    caption: Span | None


class ShardDataset(ClipStream):
    """Clips of ``frames`` frames from tar shards; items as those of :class:`data.clips.ClipDataset`.

    Args:
        root: shards, one pattern or several: a file, a folder (all its ``.tar``), a brace pattern
            (``clips-{000..127}.tar``), a URL that fsspec reads (``https://``, ``s3://``, ``hf://``, ...; braces too).
        cache: folder of the indices and of the copies of remote shards.
        options: those of :class:`data.clips.ClipStream`.

    A clip that cannot be decoded, or is too small or too short, is passed over: another takes its place, drawn from
    (seed, index). ``skipped`` counts those, in all workers. ``damaged`` counts the shards that are cut off or no tar
    files; their whole clips are used. Raises ``UserError`` for a missing or unreachable shard and when no clip is left.
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
        """How often a clip had to be passed over so far."""
        return int(self._skipped)

    def __getitem__(self, index: int) -> Item:
        if index < 0:
            raise IndexError(index)
        for attempt in range(_SUBSTITUTES):
            rng = np.random.default_rng([self.seed, index, attempt])
            sample = self.samples[rng.integers(len(self.samples))] if attempt else self.sample(index)
            try:
                return self._make(sample, rng)
            except UserError as error:
                self._skipped += 1
                log.warning("%s; passed over, %d so far", error, self.skipped)
        raise UserError(f"{_SUBSTITUTES} clips in a row could not be used; the last: {sample.key} of {sample.shard}")

    def sample(self, index: int) -> Sample:
        """The clip whose turn it is: each epoch is a permutation of all clips, drawn from (seed, epoch)."""
        epoch, position = divmod(index, len(self.samples))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))
        return self.samples[self._order[position]]

    def read(self, sample: Sample, rng: np.random.Generator) -> np.ndarray:
        """The frames of a clip at times that are drawn, ``t h w c`` uint8; raises ``UserError`` for a broken one."""
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
    """The shards that a pattern names: braces as WebDataset expands them, or all ``.tar`` files of a folder."""
    if pattern.startswith("pipe:"):
        raise UserError(f"{pattern}: a configuration is data and starts no command; give a URL (s3://, https://, ...)")
    if "://" not in pattern and (folder := Path(pattern).expanduser()).is_dir():
        return [str(path) for path in sorted(folder.glob("*.tar")) if path.name[0] != "."]
    return list(expand_urls(pattern))


def local_copy(url: str, folder: Path) -> Path:
    """The file of a shard, fetched into ``folder`` if it is remote and not there yet.

    A copy is known by its URL alone, so that a run needs no network once it has them: what a URL names must not change.
    Within :func:`data.cache.headers_only` nothing is fetched, and there may be no such file.
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
        with first_to_make(copy) as missing:  # the processes of one machine start together
            if missing:
                with atomic_path(copy) as temporary:
                    _fetch(url, temporary)
    except OSError as error:
        raise UserError(f"the cache of shards {folder} cannot be used ({error.strerror}); set data.cache") from error
    return copy


def index_shard(path: Path, folder: Path) -> tuple[list[Sample], str]:
    """The clips of a tar file and what is wrong with it, if anything; remembered in ``folder``."""
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
    """Read the headers of a tar file, up to the end or to where it is cut off."""
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
            fault = _end(path, tar.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        fault = str(error) or type(error).__name__
        groups.pop(last, None)  # the clip that the cut went through
    samples = []
    for key, members in groups.items():
        videos = [span for extension, span in members.items() if f".{extension.split('.')[-1]}" in VIDEO_SUFFIXES]
        if videos:
            samples.append(Sample(path, key, videos[0], members.get("txt")))
    return samples, fault


def _end(path: Path, at: int) -> str:
    """What is wrong where tarfile read no further: it takes any header that it cannot read for the end."""
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
    for attempt in range(_FETCHES):
        try:
            filesystem, remote = fsspec.core.url_to_fs(url)
            filesystem.get_file(remote, str(target))
            return
        except Exception as error:  # each of fsspec's back ends has errors of its own
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            if attempt == _FETCHES - 1 or isinstance(error, FileNotFoundError | ImportError | ValueError):
                raise UserError(f"cannot fetch shard {url} ({type(error).__name__}: {error}); check the URL") from error
            log.warning("fetching %s failed (%s); trying again", url, error)
            time.sleep(2**attempt)
