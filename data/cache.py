"""Decode once: videos and photographs as memory-mapped uint8 arrays."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import av.error
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv"})
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

# Without these flags swscale truncates (a level lost in each conversion) and repeats chroma samples.
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED (ITU-T H.273 table 4)
_FORMAT = "1"  # raised when the same file would be decoded to other pixels


class FrameCache:
    """A folder of decoded clips, one ``.npy`` for each source file.

    An entry belongs to one state of a file (path, size, time of change) and one ``max_frames``: a changed file is
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
            state = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}); check the data folder") from error
        key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{self.max_frames}|{_FORMAT}"
        return self.root / f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_SUFFIXES


def find_sources(root: Path) -> list[Path]:
    """Every video and photo under ``root``, sorted; hidden files are left out."""
    suffixes = VIDEO_SUFFIXES | PHOTO_SUFFIXES
    return sorted(p for p in root.rglob("*") if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file())


def read_photo(path: Path) -> np.ndarray:
    """RGB ``h w c`` uint8, turned upright as its EXIF data says."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise UserError(f"{path} cannot be decoded as a picture; remove it or convert it")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_video(path: Path, max_frames: int = 0) -> np.ndarray:
    """RGB ``t h w c`` uint8 in order of display, at most ``max_frames`` (0: all).

    A damaged end is dropped: what could be decoded before it is kept, as are the frames before a change of size.
    """
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                rgb = _to_rgb(frame)
                if frames and rgb.shape != frames[0].shape:
                    break
                frames.append(rgb)
                if len(frames) == max_frames:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        if not frames:
            raise UserError(f"{path} cannot be decoded as a video ({error}); remove it or convert it") from error
    if not frames:
        raise UserError(f"{path} holds no video frames; remove it or convert it")
    return np.stack(frames)


def _to_rgb(frame: VideoFrame) -> np.ndarray:
    """By the matrix and range that the frame is tagged with; untagged: BT.601 up to 576 lines, BT.709 above."""
    untagged = int(frame.colorspace) == _UNSPECIFIED
    matrix = (Colorspace.ITU601 if frame.height <= 576 else Colorspace.ITU709) if untagged else None
    return frame.reformat(format="rgb24", src_colorspace=matrix, interpolation=EXACT).to_ndarray()
