"""Paired clips: ``hr/NAME``, ``lr/NAME`` and, optionally, ``mask/NAME``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from einops import rearrange, reduce

from data.cache import CacheError, FrameCache, looking, read_caption
from data.clips import DEFAULT_CACHE, ClipStream, Item
from data.degrade import exact_scale
from data.masks import sample_mask
from data.paint import paint_hole
from ldm_video.core.errors import UserError
from ldm_video.core.tensors import to_signed
from ldm_video.video_io.container import VIDEO_SUFFIXES
from ldm_video.video_io.stills import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

_HOLE_THRESHOLD = 128  # grey levels from 128 up are hole


class Pair(NamedTuple):
    """The files (or folders of frames) of one clip."""

    hr: Path
    lr: Path
    mask: Path | None


class PairDataset(ClipStream):
    """Clips of ``frames`` frames from ``root/hr``, ``root/lr`` and, if it exists, ``root/mask``.

    An entry of these folders is a video, a picture or a folder of frames; entries of the same name (the suffix may
    differ) belong together. The low-res clip has as many frames as the high-res one and is exactly ``scale`` times
    smaller. A mask is white in the hole; it has the size of either clip, and one frame or one per frame of the clip.
    With a mask, the low-res pixels in the hole are used as they are. A clip without a mask gets a random one (see
    :mod:`data.masks`), and the hole is painted over in its low-res frames.

    Args:
        root: the folder of ``hr`` and ``lr``. ``hr/NAME.txt`` is a caption.
        degrade: must be ``None``: the pairs are already degraded.
        cache: folder of decoded frames; ``None`` is ``~/.cache/ldm-video``.
        options: those of :class:`data.clips.ClipStream`. Of :class:`data.sampling.Sampling`, only ``max_stride``,
            ``candidates``, ``prefer_detail``, ``max_frames`` and ``average`` have an effect.

    The items are those of :class:`data.clips.ClipDataset`: a pure function of (``seed``, index).
    Raises ``UserError`` for a missing folder, when no pair is usable and when the cache cannot be written. Unusable
    pairs, and entries of the same name in one folder, are logged and skipped.
    """

    comes_degraded = True

    def __init__(
        self,
        root: str | Path,
        degrade: None = None,
        cache: str | Path | None = None,
        **options: Any,
    ) -> None:
        if degrade is not None:
            raise UserError("pairs are degraded already; set data.degrade=null")
        super().__init__(degrade=None, **options)
        self.cache = FrameCache(DEFAULT_CACHE if cache is None else cache, self.sampling.max_frames)
        self.pairs = self._open(Path(root).expanduser())

    def __getitem__(self, index: int) -> Item:
        if index < 0:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        pair = self.pairs[rng.integers(len(self.pairs))]
        hr, lr = self.cache.frames(pair.hr), self.cache.frames(pair.lr)
        times = self.draw_times(len(hr), self.frames, rng)
        top, left = self.choose_window(hr[times.start], self.size, rng, self.step)
        exact = exact_scale(self.scale)
        low = [int(n / exact) for n in (top, left, *self.size)]
        hr_crop = hr[times, top : top + self.size[0], left : left + self.size[1]]  # t H W c
        lr_crop = lr[times, low[0] : low[0] + low[2], low[1] : low[1] + low[3]]  # t h w c
        if pair.mask is None:
            hole = sample_mask(rng, self.frames, self.size, self.masks, self.families)[:, 0]  # t H W
            lr_crop = paint_hole(np.ascontiguousarray(lr_crop), touched(hole, lr_crop.shape[1:3]), rng)
        else:
            hole = self._given_hole(pair.mask, times, hr.shape[1:3])
            hole = hole[:, top : top + self.size[0], left : left + self.size[1]]
        crops = [hr_crop, lr_crop, hole]
        if rng.random() < 0.5:
            crops = [crop[:, :, ::-1] for crop in crops]
        if rng.random() < 0.5:
            crops = [crop[::-1] for crop in crops]
        hr_crop, lr_crop, hole = (crop.copy() for crop in crops)
        mask = torch.from_numpy(rearrange(hole, "t h w -> t 1 h w"))
        lowres = to_signed(torch.from_numpy(rearrange(lr_crop, "t h w c -> t c h w"))).contiguous()
        return {
            "hr": to_signed(torch.from_numpy(rearrange(hr_crop, "t h w c -> t c h w"))).contiguous(),
            "lr": self.average(lowres, mask, rng),
            "hole": mask,
            "name": pair.hr.name,
            "caption": read_caption(pair.hr),
        }

    def _given_hole(self, path: Path, times: slice, size: tuple[int, int]) -> np.ndarray:
        """Return the mask's frames at ``times``, resized to the high-res ``size``: ``t H W`` float32 in {0, 1}."""
        mask = self.cache.frames(path)
        chosen = mask[times] if len(mask) > 1 else np.repeat(mask[:1], self.frames, 0)
        grey = [frame.mean(-1) >= _HOLE_THRESHOLD for frame in chosen]  # h w
        nearest = cv2.INTER_NEAREST_EXACT  # at a scale such as 1.25, INTER_NEAREST is off by one pixel
        return np.stack([cv2.resize(g.astype(np.float32), size[::-1], interpolation=nearest) for g in grey])  # t H W

    def _open(self, root: Path) -> list[Pair]:
        for part in ("hr", "lr"):
            if not (root / part).is_dir():
                raise UserError(f"there is no folder {root / part}; pairs are {root}/hr/NAME and {root}/lr/NAME")
        highs, lows, holes = (_entries(root / part) for part in ("hr", "lr", "mask"))
        usable: list[Pair] = []
        left_out = [f"{paths[0]} has no partner in hr" for stem, paths in lows.items() if stem not in highs]
        for stem, (path, *_) in highs.items():
            if usable and looking():
                break
            if stem not in lows:
                left_out.append(f"{path} has no partner in lr")
                continue
            # Use neither: it is ambiguous which one is meant.
            if alike := next((part[stem] for part in (highs, lows, holes) if len(part.get(stem, ())) > 1), None):
                left_out.append(f"{' and '.join(map(str, alike))} have one name; keep one of them")
                continue
            pair = Pair(path, lows[stem][0], holes[stem][0] if stem in holes else None)
            try:
                fault = self._fault(pair)
            except CacheError:
                raise
            except UserError as error:
                fault = str(error)
            if fault is None:
                usable.append(pair)
            else:
                left_out.append(fault)
        if left_out:
            log.warning("left out %d pairs: %s", len(left_out), "; ".join(left_out))
        if not usable:
            raise UserError(f"no usable pair in {root}; hr must be exactly {self.scale} times as large as lr")
        return usable

    def _fault(self, pair: Pair) -> str | None:
        """Return why a pair is unusable, or ``None``. Decodes what is not yet cached."""
        (length, *high), (low_length, *low) = (self.cache.frames(path).shape[:3] for path in (pair.hr, pair.lr))
        if [n * exact_scale(self.scale) for n in low] != high:
            return f"{pair.hr} ({high[0]}x{high[1]}) is not {self.scale} times {pair.lr} ({low[0]}x{low[1]})"
        if length != low_length:
            return f"{pair.hr} has {length} frames, {pair.lr} has {low_length}"
        if length < self.frames:
            return f"{pair.hr} has {length} frames, fewer than a clip"
        if high[0] < self.size[0] or high[1] < self.size[1]:
            return f"{pair.hr} ({high[0]}x{high[1]}) is smaller than the crop"
        if pair.mask is None:
            return None
        mask_length, *size = self.cache.frames(pair.mask).shape[:3]
        if size not in (high, low) or mask_length not in (1, length):
            return f"{pair.mask} ({mask_length} frames of {size[0]}x{size[1]}) does not fit {pair.hr}"
        return None


def touched(hole: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the low-res pixels that overlap the hole: ``t H W`` -> ``t h w``, both in {0, 1}."""
    height, width = hole.shape[1:]
    if height % size[0] == 0 and width % size[1] == 0:
        return reduce(hole, "t (h y) (w x) -> t h w", "max", h=size[0], w=size[1])
    areas = [cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in hole]
    return (np.stack(areas) > 0).astype(np.float32)


def _entries(folder: Path) -> dict[str, list[Path]]:
    """Return videos, pictures and folders of frames by name without suffix, sorted; empty for a missing folder."""
    known = VIDEO_SUFFIXES | IMAGE_SUFFIXES
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name[0] != "." and (path.is_dir() or path.suffix.lower() in known):
            found.setdefault(path.name if path.is_dir() else path.stem, []).append(path)
    return found
