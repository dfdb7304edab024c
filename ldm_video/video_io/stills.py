"""Still images and folders of frames, through OpenCV (which honours EXIF orientation)."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from ldm_video.core.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def is_image(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key with numbers by value: ``frame2 < frame10``; ties (``01``, ``1``) by the text itself."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part] + [(2, 0, name)]


def list_frames(folder: Path) -> list[Path]:
    """The images of a folder in natural order; hidden files and other files are passed over."""
    files = [p for p in folder.iterdir() if is_image(p) and not p.name.startswith(".") and p.is_file()]
    if not files:
        raise UserError(f"the folder {folder} holds no frames; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(files, key=lambda p: natural_key(p.name))


def read_image(path: Path) -> np.ndarray:
    """``h w 3`` BGR, uint8 or uint16 (or float in [0, 1]). Transparency is dropped."""
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    except cv2.error as error:
        raise UserError(f"{path} cannot be read as an image ({error.err})") from error
    if image is None:
        raise UserError(f"{path} cannot be read as an image; it is empty, damaged or of another format")
    return image


def require_size(image: np.ndarray, size: tuple[int, int], path: Path, first: Path) -> None:
    """``UserError`` naming the file whose size differs from the first frame's."""
    if image.shape[:2] != size:
        raise UserError(
            f"{path} is {image.shape[1]}x{image.shape[0]} but {first.name} is {size[1]}x{size[0]}; "
            "all frames of a folder must have the same size"
        )
