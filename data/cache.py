"""Decode once: videos and photographs as memory-mapped uint8 arrays."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
from einops import rearrange

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path
from ldm_video.core.tensors import to_bytes
from ldm_video.video_io import FrameReader

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv"})
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

_FORMAT = "2"  # raised when the same file would be decoded to other pixels


class FrameCache:
    """A folder of decoded clips, one ``.npy`` for each source: a video, a photo, or a folder of frames.

    An entry belongs to one state of a source (path, size, time of change) and one ``max_frames``: a changed one is
    decoded again. Entries are whole or absent, so several processes may share a folder.

    Args:
        root: folder of the entries; made when it is missing.
        max_frames: frames of a video that are kept, from its start. 0 keeps all of them.
    """

    def __init__(self, root: str | Path, max_frames: int = 64) -> None:
        self.root = Path(root).expanduser()
        self.max_frames = max_frames

    def frames(self, path: str | Path) -> np.ndarray:
        """The RGB frames of a video or a photo, read-only ``t h w c`` uint8 (``t`` = 1 for a photo).

        Raises ``UserError`` when the file is missing or holds no frame that can be decoded.
        """
        path = Path(path)
        entry = self.entry(path)
        if not entry.is_file():
            frames = read_photo(path)[None] if is_photo(path) else read_video(path, self.max_frames)
            with atomic_path(entry) as temporary:
                np.save(temporary, frames)
        return np.load(entry, mmap_mode="r")

    def entry(self, path: Path) -> Path:
        """Where the frames of ``path``, as it is now, are kept."""
        try:
            states = [file.stat() for file in (path.iterdir() if path.is_dir() else [path])]
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}); check the data folder") from error
        size, changed = sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)
        key = f"{path.resolve()}|{size}|{changed}|{self.max_frames}|{_FORMAT}"
        return self.root / f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_SUFFIXES


def find_sources(root: Path) -> list[Path]:
    """Every video and photo under ``root``, sorted; hidden files are left out."""
    suffixes = VIDEO_SUFFIXES | PHOTO_SUFFIXES
    return sorted(p for p in root.rglob("*") if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file())


def read_caption(path: Path) -> str:
    """What the sidecar ``NAME.txt`` of a video or photo says; empty where there is none."""
    sidecar = path.with_suffix(".txt")
    return sidecar.read_text(encoding="utf-8", errors="replace").strip() if sidecar.is_file() else ""


def read_photo(path: Path) -> np.ndarray:
    """RGB ``h w c`` uint8, turned upright as its EXIF data says."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise UserError(f"{path} cannot be decoded as a picture; remove it or convert it")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_video(path: Path, max_frames: int = 0) -> np.ndarray:
    """RGB ``t h w c`` uint8 as ``infer.py`` reads it: upright, progressive, square pixels; ``max_frames`` 0: all."""
    with FrameReader(path, stop=max_frames or None) as reader:
        return np.stack([rearrange(to_bytes(frame.pixels), "c h w -> h w c").numpy() for frame in reader])
