"""Decode once: videos and photographs as memory-mapped uint8 arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import numpy as np
from einops import rearrange

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path
from ldm_video.core.locks import first_to_make
from ldm_video.core.tensors import to_bytes
from ldm_video.video_io import FrameReader
from ldm_video.video_io.container import VIDEO_SUFFIXES
from ldm_video.video_io.convert import image_to_pixels
from ldm_video.video_io.probe import probe
from ldm_video.video_io.stills import IMAGE_SUFFIXES, is_image, read_image

_FORMAT = "4"  # raised when the same file would be decoded to other pixels
_looking = ContextVar("looking", default=False)


@contextmanager
def headers_only() -> Iterator[None]:
    """Is there anything to train on? Data sets that are built meanwhile look for one source that can be used, at its
    header's word; they decode, fetch and write nothing, and have no items."""
    token = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(token)


def looking() -> bool:
    """Whether this is within :func:`headers_only`."""
    return _looking.get()


class CacheError(UserError):
    """The folder of decoded frames cannot be written or read: no fault of a source, and no reason to go on without."""


class FrameCache:
    """A folder of decoded clips, one ``.npy`` for each source: a video, a photo, or a folder of frames.

    An entry belongs to one state of a source (path, size, time of change; of a folder, those of every file in it) and
    one ``max_frames``: a changed one is decoded again. Entries are whole or absent, so several processes may share a
    folder; a source that they ask for at the same time is decoded by one of them.

    Args:
        root: folder of the entries; made when it is missing.
        max_frames: frames of a video that are kept, from its start. 0 keeps all of them.
    """

    def __init__(self, root: str | Path, max_frames: int = 64) -> None:
        self.root = Path(root).expanduser()
        self.max_frames = max_frames

    def frames(self, path: str | Path) -> np.ndarray:
        """The RGB frames of a video or a photo, read-only ``t h w c`` uint8 (``t`` = 1 for a photo).

        Raises ``UserError`` when the file is missing or holds no frame that can be decoded, and ``CacheError``, one of
        these, when the entry cannot be written or read. Within :func:`headers_only` those that are not there are black.
        """
        path = Path(path)
        entry = self.entry(path)
        if not self._holds(entry):
            if looking():
                return np.broadcast_to(np.uint8(0), (*_announced(path, entry, self.max_frames), 3))
            self._make(entry, path)
        try:
            return np.load(entry, mmap_mode="r")
        except OSError as error:
            raise self._closed(error) from error
        except (ValueError, EOFError) as error:
            raise CacheError(f"{entry} of the cache of frames is damaged ({_why(error)}); remove it") from error

    def entry(self, path: Path) -> Path:
        """Where the frames of ``path``, as it is now, are kept."""
        try:
            state = _folder_state(path) if path.is_dir() else _file_state(path)
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}); check the data folder") from error
        key = f"{path.resolve()}|{state}|{self.max_frames}|{_FORMAT}"
        return self.root / f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"

    def _holds(self, entry: Path) -> bool:
        try:
            return entry.is_file()
        except OSError as error:  # a folder that may not be looked into
            raise self._closed(error) from error

    def _make(self, entry: Path, path: Path) -> None:
        """Decode ``path``, in one of the processes that find no entry: those of a run all start with the same one."""
        with ExitStack() as turn:
            try:
                missing = turn.enter_context(first_to_make(entry))
            except OSError as error:
                raise self._closed(error) from error
            if missing:
                self._store(entry, read_photo(path)[None] if is_image(path) else read_video(path, self.max_frames))

    def _store(self, entry: Path, frames: np.ndarray) -> None:
        try:
            # Not `np.save`: where the disk is full, its own way to write says neither so nor which file it was.
            with atomic_path(entry) as temporary, temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(frames))
                file.write(np.ascontiguousarray(frames).data)
        except (UserError, OSError) as error:
            raise self._closed(error) from error

    def _closed(self, error: Exception) -> CacheError:
        return CacheError(
            f"the cache of decoded frames {self.root} cannot be used ({_why(error)}); make room or set data.cache"
        )


@cache
def _announced(path: Path, entry: Path, max_frames: int) -> tuple[int, int, int]:
    """Frames, height and width as the header has them; as many frames as are kept where it does not say."""
    info = probe(path)
    frames = info.frames or int((info.duration or 0) * (info.rate or 0)) or max_frames or 1
    return min(frames, max_frames or frames), info.height, info.width


def _why(error: Exception) -> str:
    """What is wrong, without what to do about it."""
    return (isinstance(error, OSError) and error.strerror) or str(error).rsplit("; ", 1)[0]


def _file_state(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size}|{state.st_mtime_ns}"


def _folder_state(path: Path) -> str:
    """Of every file by its name: two that change places change neither sizes nor times."""
    return "/".join(f"{file.name}|{_file_state(file)}" for file in sorted(path.iterdir()))


def find_sources(root: Path) -> list[Path]:
    """Every video and photo under ``root``, sorted; hidden files, and those in hidden folders, are left out."""
    suffixes = VIDEO_SUFFIXES | IMAGE_SUFFIXES
    found = (path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(root).parts))


def read_caption(path: Path) -> str:
    """What the sidecar ``NAME.txt`` of a video, a photo or a folder of frames says; empty where there is none."""
    # What follows a dot in the name of a folder is no suffix: `take.1` and `take.2` are two clips.
    sidecar = path.with_name(f"{path.name}.txt") if path.is_dir() else path.with_suffix(".txt")
    return decode_caption(sidecar.read_bytes()) if sidecar.is_file() else ""


def decode_caption(text: bytes) -> str:
    """UTF-8, without the mark before it that Windows' editors write; what is none is shown as such."""
    return text.decode("utf-8-sig", "replace").strip()


def read_photo(path: Path) -> np.ndarray:
    """RGB ``h w c`` uint8 as ``infer.py`` reads it, of any depth, turned upright as its EXIF data says."""
    try:
        pixels = image_to_pixels(read_image(path))
    except UserError as error:
        raise UserError(f"{path} cannot be decoded as a picture; remove it or convert it") from error
    return rearrange(to_bytes(pixels), "c h w -> h w c").numpy()


def read_video(path: Path, max_frames: int = 0) -> np.ndarray:
    """RGB ``t h w c`` uint8 as ``infer.py`` reads it: upright, progressive, square pixels; ``max_frames`` 0: all."""
    with FrameReader(path, stop=max_frames or None) as reader:
        return np.stack([rearrange(to_bytes(frame.pixels), "c h w -> h w c").numpy() for frame in reader])
