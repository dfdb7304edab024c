"""Masks in sync with the clip: white (1) = fill, black or transparent (0) = keep."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_video.core.errors import UserError
from ldm_video.video_io.reader import FrameReader

Box = tuple[int, int, int, int]
THRESHOLD = 128 / 255  # grey 128 and above is white


class MaskSource:
    """The hole of each frame of a clip: boxes, and an image, folder or video read in sync with the clip.

    ``at(index)``: float32 ``1 h w`` in {0, 1}. A mask video is decoded once, forwards, holding one frame; requesting an
    earlier frame restarts it. A one-frame mask applies to the whole clip. ``finish(frames)`` must be called once the
    clip's true length is known. Both raise ``UserError`` on a mismatch. ``recount``: see :func:`read_mask`.
    """

    def __init__(
        self,
        path: Path | None,
        boxes: Sequence[Box],
        size: tuple[int, int],
        frames: int | None,
        recount: Callable[[], int | None] | None = None,
    ) -> None:
        self.size = size
        self._path = path
        self._announced = frames
        self._boxes = fill_boxes(boxes, size)
        self._reader: FrameReader | None = None
        self._held, self._held_index = self._boxes, -1  # the frame last requested
        self._pixels: Tensor | None = None  # of the frame last read, if it is not a mask yet
        self._next: Tensor | None = None
        self.frames: int | None = None  # 1: one frame for the whole clip; None: as many as the clip's
        if path is not None:
            announced = self._open(path).info.frames
            if self.frames != 1 and None not in (announced, frames) and announced != frames:
                self._announced = frames if recount is None else recount()
                if announced != self._announced:
                    self.close()
                    raise self._mismatch(str(announced), str(self._announced))

    def at(self, index: int) -> Tensor:
        """Return ``1 h w`` for frame ``index`` of the clip."""
        if self._path is None or self.frames == 1:
            return self._hole()
        if index < self._held_index:
            self._open(self._path)
        while self._held_index < index:
            if self._next is None:
                raise self._mismatch(str(self._held_index + 1), str(self._announced or f"at least {index + 1}"))
            self._advance()
        return self._hole()

    def has(self, index: int) -> bool:
        """Return whether there is a mask for frame ``index``, the one last requested or the next one."""
        return self._path is None or self.frames == 1 or index <= self._held_index or self._next is not None

    def finish(self, frames: int, cut_short: bool = True) -> None:
        """Check the mask's length against the clip's ``frames`` as decoded: they are matched by index.

        ``cut_short``: frames that the container announced but that did not decode are the clip's last ones, as in a
        truncated file. A mask that has them too is then correct; if they were lost elsewhere, it would lag from there.
        """
        if self._path is None or self.frames == 1:
            return
        while self._next is not None:
            self._advance()
        count = self._held_index + 1
        if count == frames:
            return
        if count != self._announced or count < frames:
            raise self._mismatch(str(count), str(frames))
        if not cut_short:
            raise self._mismatch(str(count), f"{frames}, lost ones not being its last (docs/films.md says what helps)")

    def close(self) -> None:
        """Close the mask file."""
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> MaskSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, path: Path) -> FrameReader:
        """Restart the mask from its first frame; one frame of look-ahead tells a still mask from a moving one."""
        self.close()
        self._reader = reader = FrameReader(path, deinterlace="off", over_black=True)
        self._next, self._held_index = self._load(), -1  # a reader has at least one frame
        self._advance()
        if self._next is None:
            self.frames = 1
        return reader

    def _advance(self) -> None:
        assert self._next is not None
        self._pixels, self._held_index = self._next, self._held_index + 1
        self._next = self._load()

    def _hole(self) -> Tensor:
        """Return the current hole, made on demand: skipped frames cost no resizing."""
        if self._pixels is not None:
            self._held = torch.maximum(binary_mask(self._pixels, self.size), self._boxes)
            self._pixels = None
        return self._held

    def _load(self) -> Tensor | None:
        assert self._reader is not None
        frame = next(self._reader, None)
        return None if frame is None else frame.pixels

    def _mismatch(self, mask: str, clip: str) -> UserError:
        return UserError(
            f"the mask {self._path} has {mask} frames but the clip has {clip}; "
            "give a mask of the same length, or one image that holds for the whole clip"
        )


def read_mask(
    source: str | Path | None,
    box: Box | Sequence[Box] | None,
    size: tuple[int, int],
    frames: int | None,
    recount: Callable[[], int | None] | None = None,
) -> MaskSource:
    """Open the holes of a clip of ``size`` (height, width) and ``frames`` frames (None: not known yet).

    ``source``: image, folder of frames or video, white = fill, transparent = keep, of any size (nearest neighbour).
    ``box``: one or several ``(x, y, w, h)`` in pixels of the clip. Both: their union. Neither: nothing to fill.
    ``recount``: counts the clip's frames, called if the mask's length differs from ``frames``, which only the container
    claims. Raises ``UserError`` for an unreadable mask, another length, and a box outside the frame.
    """
    boxes: Sequence[Box] = [] if box is None else [box] if isinstance(box[0], int) else box  # type: ignore[list-item, assignment]
    return MaskSource(None if source is None else Path(source), boxes, size, frames, recount)


def parse_box(text: str) -> Box:
    """Parse ``"x,y,w,h"`` as integers; ``x`` and ``y`` may be negative, ``w`` and ``h`` must be positive.

    Raises ``UserError`` otherwise.
    """
    parts = text.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r"\s*-?\d+\s*", part) for part in parts):
        raise UserError(f"box {text!r} is not x,y,w,h in whole pixels; for example 16,8,120,40")
    x, y, w, h = (int(part) for part in parts)
    if w <= 0 or h <= 0:
        raise UserError(f"box {text!r} is empty; width and height must be positive")
    return x, y, w, h


def fill_boxes(boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """Draw boxes as ``1 h w`` in {0, 1}, clipped to the frame; ``UserError`` for one entirely outside it."""
    height, width = size
    mask = torch.zeros(1, height, width)
    for x, y, w, h in boxes:
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if left >= right or top >= bottom:
            raise UserError(f"box {x},{y},{w},{h} lies outside the {width}x{height} frame; x,y is its top left corner")
        mask[:, top:bottom, left:right] = 1.0
    return mask


def binary_mask(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Threshold ``c h w`` in [-1, 1] to ``1 h w`` in {0, 1}: mean of RGB against 128, resized to ``size`` (nearest)."""
    grey = (pixels.mean(0, keepdim=True) + 1) / 2  # c h w -> 1 h w
    mask = (grey >= THRESHOLD - 1e-4).float()
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask[None], size=size, mode="nearest-exact")[0]
    return mask
