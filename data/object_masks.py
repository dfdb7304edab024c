"""Silhouettes of real objects as holes: the mask family ``object`` of :mod:`data.masks`, read from a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ldm_video.core.errors import UserError

_AREA_RANGE = (0.02, 0.3)  # fraction of the crop that an object is scaled to (if entirely inside)
_MAX_ZOOM = 4.0  # beyond this, the mask's own pixels become visible
_MAX_STRIDE = 2
_THRESHOLD = 127


@dataclass(frozen=True)
class ObjectMasks:
    """A mask family: ``(rng, frames, size) -> t 1 h w`` float32 in {0, 1}, 1 = object = hole.

    An object keeps its motion and shape. It is scaled to 2 to 30 % of the frame (at most 4x), moved to a random place
    (where the edges of the frame may cut it), mirrored in half of the draws and reversed in time in half of them. A
    clip shorter than ``frames`` is played back and forth. Frames without the object have no hole.

    Attributes:
        root: a folder of folders, ``CLIP/00000.png``, ``00001.png`` ..., white = object.
        clips: the clips found under ``root``; the files of each, in order.

    The constructor raises ``UserError`` for a missing or empty folder and a gap in a numbering; a call raises it for a
    file that cannot be read or differs in size from the first of its clip.
    """

    root: str | Path
    clips: tuple[tuple[Path, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.root, str | Path):
            raise UserError(f"objects is {self.root!r}; give a folder of object masks")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise UserError(f"folder of object masks {root} does not exist; set the data set's option `objects` to one")
        clips = [sorted(folder.glob("*.png")) for folder in sorted(root.iterdir()) if folder.is_dir()]
        clips = [files for files in clips if files]
        if not clips:
            raise UserError(f"no CLIP/00000.png in {root}; put in a folder of numbered masks for each clip")
        for files in clips:
            _check_numbering(files)
        object.__setattr__(self, "root", root)
        object.__setattr__(self, "clips", tuple(tuple(files) for files in clips))

    def __call__(self, rng: np.random.Generator, frames: int, size: tuple[int, int]) -> np.ndarray:
        files = self.clips[rng.integers(len(self.clips))]
        masks = _read([files[index] for index in _times(rng, len(files), frames)])
        if rng.random() < 0.5:
            masks = masks[:, :, ::-1]
        place = rng.uniform(0.1, 0.9, 2) * [size[1], size[0]]
        area = rng.uniform(*_AREA_RANGE) * size[0] * size[1]
        return _fit(np.ascontiguousarray(masks), size, place, area)


def _check_numbering(files: list[Path]) -> None:
    for index, file in enumerate(files):
        if file.stem != f"{index:05d}":
            raise UserError(f"{file.parent} has {file.name} where {index:05d}.png should be; number the masks from 0")


def _times(rng: np.random.Generator, length: int, frames: int) -> np.ndarray:
    """Draw ``frames`` evenly spaced frame numbers, back and forth if the clip is too short."""
    fits = max(1, (length - 1) // max(1, frames - 1))
    stride = int(rng.integers(1, min(fits, _MAX_STRIDE) + 1))
    reach = (frames - 1) * stride
    start = int(rng.integers(max(1, length - reach)))
    there_and_back = np.concatenate([np.arange(length), np.arange(length - 2, 0, -1)])
    times = there_and_back[(start + np.arange(frames) * stride) % len(there_and_back)]
    return times[::-1] if rng.random() < 0.5 else times


def _read(files: list[Path]) -> np.ndarray:
    """Read masks as ``t h w`` float32 in {0, 1}."""
    masks: list[np.ndarray] = []
    for file in files:
        picture = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise UserError(f"cannot read the mask {file}; replace it or take its clip away")
        if masks and picture.shape != masks[0].shape:
            raise UserError(f"{file} is {picture.shape[1]}x{picture.shape[0]}, its clip's others are not; resize it")
        masks.append((picture > _THRESHOLD).astype(np.float32))
    return np.stack(masks)


def _fit(masks: np.ndarray, size: tuple[int, int], place: np.ndarray, area: float) -> np.ndarray:
    """Scale the objects to ``area`` pixels on average and move their centroid to ``place`` (x y): ``t 1 h w``."""
    fitted = np.zeros((len(masks), 1, *size), np.float32)
    _, rows, columns = np.nonzero(masks)
    if not len(rows):
        return fitted
    shown = np.count_nonzero(masks.any(axis=(1, 2)))
    zoom = min(_MAX_ZOOM, float(np.sqrt(area * shown / len(rows))))
    if zoom < 1:  # average first, to avoid aliasing in the warp
        small = (max(1, round(masks.shape[2] * zoom)), max(1, round(masks.shape[1] * zoom)))
        sources = [cv2.resize(mask, small, interpolation=cv2.INTER_AREA) for mask in masks]
    else:
        sources = list(masks)
    ratio = np.array([sources[0].shape[1] / masks.shape[2], sources[0].shape[0] / masks.shape[1]])
    middle = (np.array([columns.mean(), rows.mean()]) + 0.5) * ratio - 0.5  # in pixels of the sources
    step = ratio / zoom  # source pixels per crop pixel, near 1 or below
    matrix = np.array([[step[0], 0, middle[0] - place[0] * step[0]], [0, step[1], middle[1] - place[1] * step[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for index, source in enumerate(sources):
        fitted[index, 0] = cv2.warpAffine(source, matrix, size[::-1], flags=flags) > 0.5
    return fitted
