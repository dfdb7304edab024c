"""Cache of decoded videos and photographs as memory-mapped uint8 arrays."""

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

_FORMAT = "4"  # increment when the decoded pixels of the same file would change
_headers_only = ContextVar("looking", default=False)


@contextmanager
def headers_only() -> Iterator[None]:
    """Check cheaply that there is something to train on. Datasets built within this context stop at the first usable
    source and trust its header; they decode, fetch and write nothing, and must not be indexed."""
    token = _headers_only.set(True)
    try:
        yield
    finally:
        _headers_only.reset(token)


def looking() -> bool:
    """Return whether :func:`headers_only` is active."""
    return _headers_only.get()


class CacheError(UserError):
    """The cache folder cannot be written or read. Unlike a bad source, this must stop the run."""


class FrameCache:
    """A folder of decoded clips, one ``.npy`` file per source: a video, a photo, or a folder of frames.

    An entry is keyed by the state of its source (path, size, modification time; for a folder, those of every file in
    it) and by ``max_frames``, so a changed source is decoded again. Entries are written atomically, so several
    processes may share a folder; if they request the same source at the same time, one of them decodes it.

    Args:
        root: folder of the entries; created if missing.
        max_frames: number of frames of a video to keep, from its start; 0 keeps all.
    """

    def __init__(self, root: str | Path, max_frames: int = 64) -> None:
        self.root = Path(root).expanduser()
        self.max_frames = max_frames

    def frames(self, path: str | Path) -> np.ndarray:
        """Return the RGB frames of a video or a photo, read-only ``t h w c`` uint8 (``t`` = 1 for a photo).

        Raises ``UserError`` when the file is missing or holds no decodable frame, and its subclass ``CacheError`` when
        the entry cannot be written or read. Within :func:`headers_only`, frames that are not cached are black.
        """
        path = Path(path)
        entry = self.entry(path)
        if not self._has(entry):
            if looking():
                return np.broadcast_to(np.uint8(0), (*_header_shape(path, entry, self.max_frames), 3))
            self._make(entry, path)
        try:
            return np.load(entry, mmap_mode="r")
        except OSError as error:
            raise self._cache_error(error) from error
        except (ValueError, EOFError) as error:
            raise CacheError(f"{entry} of the cache of frames is damaged ({_reason(error)}); remove it") from error

    def entry(self, path: Path) -> Path:
        """Return the cache file for the current state of ``path``."""
        try:
            state = _folder_state(path) if path.is_dir() else _file_state(path)
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}); check the data folder") from error
        key = f"{path.resolve()}|{state}|{self.max_frames}|{_FORMAT}"
        return self.root / f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"

    def _has(self, entry: Path) -> bool:
        try:
            return entry.is_file()
        except OSError as error:  # no permission to search the folder
            raise self._cache_error(error) from error

    def _make(self, entry: Path, path: Path) -> None:
        """Decode ``path`` in one of the processes that find no entry: all processes of a run start at the same one."""
        with ExitStack() as turn:
            try:
                missing = turn.enter_context(first_to_make(entry))
            except OSError as error:
                raise self._cache_error(error) from error
            if missing:
                self._store(entry, read_photo(path)[None] if is_image(path) else read_video(path, self.max_frames))

    def _store(self, entry: Path, frames: np.ndarray) -> None:
        try:
            # Not `np.save`: on a full disk, its error names neither the cause nor the file.
            with atomic_path(entry) as temporary, temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(frames))
                file.write(np.ascontiguousarray(frames).data)
        except (UserError, OSError) as error:
            raise self._cache_error(error) from error

    def _cache_error(self, error: Exception) -> CacheError:
        return CacheError(
            f"the cache of decoded frames {self.root} cannot be used ({_reason(error)}); make room or set data.cache"
        )


@cache
def _header_shape(path: Path, entry: Path, max_frames: int) -> tuple[int, int, int]:
    """Return (frames, height, width) from the header; assume ``max_frames`` frames if it gives no count."""
    info = probe(path)
    frames = info.frames or int((info.duration or 0) * (info.rate or 0)) or max_frames or 1
    return min(frames, max_frames or frames), info.height, info.width


def _reason(error: Exception) -> str:
    """Return what is wrong, without the advice that follows it."""
    return (isinstance(error, OSError) and error.strerror) or str(error).rsplit("; ", 1)[0]


def _file_state(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size}|{state.st_mtime_ns}"


def _folder_state(path: Path) -> str:
    """Return the state of every file with its name: swapping two files changes neither sizes nor times."""
    return "/".join(f"{file.name}|{_file_state(file)}" for file in sorted(path.iterdir()))


def find_sources(root: Path) -> list[Path]:
    """Return every video and photo under ``root``, sorted, without hidden files and files in hidden folders."""
    suffixes = VIDEO_SUFFIXES | IMAGE_SUFFIXES
    found = (path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(root).parts))


def read_caption(path: Path) -> str:
    """Return the sidecar caption ``NAME.txt`` of a video, a photo or a folder of frames; empty if there is none."""
    # A folder name has no suffix: `take.1` and `take.2` are two clips.
    sidecar = path.with_name(f"{path.name}.txt") if path.is_dir() else path.with_suffix(".txt")
    return decode_caption(sidecar.read_bytes()) if sidecar.is_file() else ""


def decode_caption(text: bytes) -> str:
    """Decode UTF-8 and strip the BOM that Windows editors write; invalid bytes become U+FFFD."""
    return text.decode("utf-8-sig", "replace").strip()


def read_photo(path: Path) -> np.ndarray:
    """Read a photo of any bit depth as ``infer.py`` does: RGB ``h w c`` uint8, upright according to its EXIF data.

    Raises ``UserError`` when it cannot be decoded.
    """
    try:
        pixels = image_to_pixels(read_image(path))
    except UserError as error:
        raise UserError(f"{path} cannot be decoded as a picture; remove it or convert it") from error
    return rearrange(to_bytes(pixels), "c h w -> h w c").numpy()


def read_video(path: Path, max_frames: int = 0) -> np.ndarray:
    """Read a video as ``infer.py`` does: RGB ``t h w c`` uint8, upright, progressive, square pixels.

    ``max_frames`` is the number of frames to read; 0 reads all.
    """
    with FrameReader(path, stop=max_frames or None) as reader:
        return np.stack([rearrange(to_bytes(frame.pixels), "c h w -> h w c").numpy() for frame in reader])
