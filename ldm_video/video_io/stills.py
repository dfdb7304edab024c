"""Still images and folders of frames, through OpenCV (which honours EXIF orientation)."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

import cv2
import numpy as np

from ldm_video.core.errors import UserError

_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
_ALPHA_SUFFIXES = (".png", ".webp")  # OpenCV composites TIFF over black already
_TIFF = (b"II", b"MM")  # byte orders
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}

_stderr_lock = threading.Lock()
# Messages of the decoders. Other threads print meanwhile: a progress bar ten times a second.
_DECODER_MESSAGES = re.compile(
    rb"(?:libpng \w+: |Corrupt JPEG data: |Premature end of JPEG |Inconsistent progression |Invalid SOS parameters |"
    rb"Unknown Adobe color |Warning: unknown JFIF |\[[ A-Z]+:\d+@[\d.]+\] global )[^\n]*\n?"
)


def is_image(path: Path) -> bool:
    """Return whether the suffix is an image's."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key with numbers by value: ``frame2 < frame10``; ties (``01``, ``1``) by the text itself."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part] + [(2, 0, name)]


def list_frames(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order, without hidden files; ``UserError`` if there are none."""
    files = [p for p in folder.iterdir() if is_image(p) and not p.name.startswith(".") and p.is_file()]
    if not files:
        raise UserError(f"the folder {folder} holds no frames; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(files, key=lambda p: natural_key(p.name))


def read_image(path: Path, damaged: list[str] | None = None, over_black: bool = False) -> np.ndarray:
    """Read ``h w 3`` BGR, uint8 or uint16 (or float in [0, 1]). Transparency is dropped.

    ``over_black``: composite PNG and WebP over black instead. ``damaged``: collects the names of pictures that are
    partly damaged, with the reason. Raises ``UserError`` for a file that cannot be read, or that holds several
    pictures.
    """
    complaints: list[str] = []
    data = _load(path)
    try:
        with _captured_stderr(complaints):
            image = cv2.imdecode(data, _COLOUR) if data.size else None
            several = image is not None and _holds_several(data)
            if image is not None and over_black and path.suffix.lower() in _ALPHA_SUFFIXES:
                image = _over_black(image, _alpha(data))
    except cv2.error as error:
        raise UserError(f"{path} cannot be read as an image ({error.err})") from error
    if image is None:
        raise UserError(f"{path} cannot be read as an image; it is empty, damaged or of another format")
    if several:
        raise UserError(f"{path} holds several pictures; save each in a file of its own, and give their folder")
    if complaints and damaged is not None:
        damaged.append(f"{path.name} ({complaints[0]})")
    return image


def _alpha(data: np.ndarray) -> np.ndarray | None:
    """``h w`` uint8 or uint16, turned as the EXIF orientation says; None where the picture has no alpha."""
    layer, types, blocks = cv2.imdecodeWithMetadata(data, cv2.IMREAD_UNCHANGED)  # as it is stored
    if layer is None or layer.ndim != 3 or layer.shape[2] != 4:
        return None
    exif = [block for type_, block in zip(types, blocks, strict=True) if type_ == cv2.IMAGE_METADATA_EXIF]
    if not exif:
        return layer[..., 3]
    # OpenCV turns whatever has no alpha: it turns this, as it turns the colours.
    grey = cv2.imencodeWithMetadata(".png", layer[..., 3], [cv2.IMAGE_METADATA_EXIF], exif[:1])[1]
    return cv2.imdecode(grey, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)


def _over_black(image: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Composite ``image``, ``h w 3``, over black by ``alpha``, ``h w``; unchanged without one."""
    if alpha is None or alpha.shape != image.shape[:2]:
        return image
    share = alpha[..., None].astype(np.float32) / np.iinfo(alpha.dtype).max  # h w 1
    return np.rint(image * share).astype(image.dtype)


def is_animated(path: Path) -> bool:
    """Return whether the file is an animated PNG, which FFmpeg reads as a video."""
    if path.suffix.lower() != ".png":
        return False
    with _captured_stderr([]), suppress(cv2.error):  # errors are reported when it is actually read
        return _holds_several(_load(path))
    return False


def _load(path: Path) -> np.ndarray:
    try:
        return np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check its permissions") from error


def _holds_several(data: np.ndarray) -> bool:
    """Return whether there is a second picture as large as the first; a smaller one is a thumbnail, as in GIMP's TIFF.

    Few files are decoded twice: animations (PNG, WebP) have a chunk that identifies them. (``cv2.imcount`` takes no
    bytes, and crashes on names that are not UTF-8.)
    """
    raw = data.tobytes()
    if not (raw.startswith(_TIFF) or b"acTL" in raw or b"ANIM" in raw):
        return False
    pictures = cv2.imdecodemulti(data, cv2.IMREAD_COLOR, range=(0, 2))[1]
    return len(pictures) == 2 and pictures[0].shape == pictures[1].shape


@contextmanager
def _captured_stderr(complaints: list[str]) -> Iterator[None]:
    """Capture what decoders print to stderr: libjpeg and libpng report damage only there."""
    with _stderr_lock, TemporaryFile() as captured:
        standard_error = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
            captured.seek(0)
            text = captured.read()
            lines = [line.decode(errors="replace").strip() for line in _DECODER_MESSAGES.findall(text)]
            complaints += [line for line in lines if "warning" not in line]  # warnings concern profiles and the like
            others = _DECODER_MESSAGES.sub(b"", text)
            if others.strip():
                os.write(2, others)


def require_size(image: np.ndarray, size: tuple[int, int], path: Path, first: Path) -> None:
    """Raise ``UserError``, naming the file, if its size differs from the first frame's."""
    if image.shape[:2] != size:
        raise UserError(
            f"{path} is {image.shape[1]}x{image.shape[0]} but {first.name} is {size[1]}x{size[0]}; "
            "all frames of a folder must have the same size"
        )
