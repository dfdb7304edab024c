"""The training set: clean clips, each with a hole and a low-res version like that of an SD recording."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from torch.utils.data import Dataset

from data.cache import CacheError, FrameCache, find_sources, looking, read_caption
from data.degrade import PRESETS, Degradation, degrade, exact_scale
from data.drawings import draw_over
from data.masks import FAMILIES, Family, check_weights, sample_mask
from data.motion import photo_clip
from data.object_masks import ObjectMasks
from data.paint import paint_hole
from data.sampling import sampling_of
from ldm_video.core.checks import number, places, sides, whole
from ldm_video.core.errors import UserError
from ldm_video.core.evidence import lay_on_grid
from ldm_video.core.tensors import size_of, to_signed
from ldm_video.motion.average import average_along_motion
from ldm_video.video_io.stills import is_image

log = logging.getLogger(__name__)

MARGIN = 16  # high-res pixels around the crop that blur and codec can see
_OPEN_ARRAYS = 64  # each memory map keeps a file open, and a process is limited to about a thousand
_PHOTO_WINDOW = 5  # in half sides of a clip: leaves room for the camera to move and to zoom out
DEFAULT_CACHE = "~/.cache/ldm-video"
DEFAULT_MASKS: Mapping[str, float] = {
    "empty": 0.3, "blob": 0.2, "moving_blob": 0.15, "stroke": 0.1, "box": 0.08,
    "ellipse": 0.05, "scratch": 0.05, "logo": 0.05, "border": 0.02,
}  # fmt: skip

Item = dict[str, torch.Tensor | str]


class ClipStream(Dataset[Item]):
    """Base class of all clip datasets: an endless stream whose items are a pure function of (``seed``, index).

    An item is a dict of ``hr`` ``t 3 H W`` and ``lr`` ``t 3 H/s W/s`` in [-1, 1], ``hole`` ``t 1 H W`` in {0, 1}, all
    float32; ``name``, its source; and ``caption``, empty if there is none.

    Args:
        frames: number of frames of a clip.
        size: size of the high-res crop, a multiple of ``scale``: one side or (height, width).
        scale: high-res pixels per low-res pixel, 1 or more, integer or not.
        degrade: a configuration or the name of a preset; None if the clips are already degraded.
        masks: family name -> weight, see :mod:`data.masks`; None uses ``DEFAULT_MASKS``.
        objects: folder of object masks for the family ``object``, see :mod:`data.object_masks`.
        seed: seed of all random choices, 0 or more.
        length: ``len()`` of the dataset, the number of items of a validation pass.
        sampling: the attributes of :class:`data.sampling.Sampling`.

    Raises ``UserError`` for an option that is unknown, of the wrong type, out of range or inconsistent with others.
    """

    comes_degraded = False

    def __init__(
        self,
        frames: int = 5,
        size: int | tuple[int, int] = 128,
        scale: float = 4,
        degrade: Degradation | str | None = "sd",
        masks: Mapping[str, float] | None = None,
        objects: str | Path | None = None,
        seed: int = 0,
        length: int = 1000,
        **sampling: Any,
    ) -> None:
        if degrade is None and not self.comes_degraded:
            raise UserError("these clips have to be degraded; data.degrade=null is for data.pairs.PairDataset alone")
        self.frames, self.length = whole("frames", frames, 1), whole("length", length, 1)
        self.seed, self.scale = whole("seed", seed, 0), scale
        number("scale", scale, 1, float("inf"))
        self.size = sides("size", size)
        self.degrade = _preset(degrade) if isinstance(degrade, str) else degrade
        self.families: dict[str, Family] = dict(FAMILIES)
        if objects is not None:
            self.families["object"] = ObjectMasks(objects)
        check_weights(DEFAULT_MASKS if masks is None else masks, self.families)
        self.masks = dict(DEFAULT_MASKS if masks is None else masks)
        self.sampling = sampling_of(sampling)
        self.step = exact_scale(scale).numerator  # in high-res pixels: multiples of it fall on whole low-res pixels
        if self.size[0] % self.step or self.size[1] % self.step:
            raise UserError(
                f"crop size {self.size[0]}x{self.size[1]} is not a multiple of {self.step}, as scale {scale} needs; "
                "change one of them"
            )
        # The margin must be a whole number of low-res pixels, or the crop of the low-res frames would be shifted.
        self.margin = -(-MARGIN // self.step) * self.step
        self.padded = (self.size[0] + 2 * self.margin, self.size[1] + 2 * self.margin)

    def __len__(self) -> int:
        return self.length

    @property
    def cut_frames(self) -> int:
        """Number of frames to cut out of a source, if it has that many: those of an item plus ``sampling.around``."""
        return self.frames + self.sampling.around

    def make_item(self, clip: np.ndarray, name: str, caption: str, rng: np.random.Generator) -> Item:
        """Flip a clip ``t h w c`` uint8 (with margin) at random in space and time, draw a hole and degrade the clip.

        The clip may have more frames than an item: all are degraded, and ``frames`` consecutive ones are kept.
        """
        assert self.degrade is not None
        if rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        if rng.random() < 0.5:
            clip = clip[::-1]
        mask = sample_mask(rng, self.frames, self.size, self.masks, self.families)  # t 1 H W
        spare = len(clip) - self.frames
        before = int(rng.integers(spare + 1)) if spare else 0
        longer = np.pad(mask, ((before, spare - before), (0, 0), (0, 0), (0, 0)), mode="edge")  # (t + spare) 1 H W
        # `copy`, not `ascontiguousarray`: a single reversed frame counts as contiguous but has a negative stride, which
        # torch rejects.
        whole = make_pair(clip.copy(), longer, self.margin, self.scale, self.degrade, rng)
        pair = {name: value[before : before + self.frames] for name, value in whole.items()}
        return {**pair, "lr": self.average(pair["lr"], pair["hole"], rng), "name": name, "caption": caption}

    def average(self, lr: torch.Tensor, hole: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Average low-res frames ``t 3 h w`` outside the hole ``t 1 H W`` along the motion.

        The number of neighbours on each side is drawn from 0 to ``sampling.average``.
        """
        if not self.sampling.average:
            return lr
        reach = int(rng.integers(self.sampling.average + 1))
        return average_along_motion(lr, lay_on_grid(hole, size_of(lr)), reach).frames

    def draw_times(self, length: int, frames: int, rng: np.random.Generator) -> slice:
        """Draw ``frames`` evenly spaced frames of a source of ``length`` frames; all of them if it has fewer."""
        frames = min(length, frames)
        stride = int(rng.integers(1, min(self.sampling.max_stride, _largest_stride(length, frames)) + 1))
        start = int(rng.integers(length - (frames - 1) * stride))
        return slice(start, start + (frames - 1) * stride + 1, stride)

    def choose_window(
        self, frame: np.ndarray, window: tuple[int, int], rng: np.random.Generator, step: int = 1
    ) -> tuple[int, int]:
        """Draw (top, left) of a window on a grid of ``step`` pixels.

        Draw ``candidates`` windows and, with probability ``prefer_detail``, take the one with the largest gradients.
        """
        ends = [(side - inner) // step + 1 for side, inner in zip(frame.shape, window, strict=False)]
        draws = [(int(y) * step, int(x) * step) for y, x in rng.integers(0, ends, (self.sampling.candidates, 2))]
        if rng.random() >= self.sampling.prefer_detail:
            return draws[0]
        return max(draws, key=lambda at: _detail(frame[at[0] : at[0] + window[0], at[1] : at[1] + window[1]]))

    def cut_photo(self, photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Film part of a photo ``h w c`` uint8 with a moving camera; returns ``t h w c`` uint8 with margin.

        Detailed parts are preferred, because half of a large photo is often sky.
        """
        size = self.padded
        window = (min(photo.shape[0], _PHOTO_WINDOW * size[0] // 2), min(photo.shape[1], _PHOTO_WINDOW * size[1] // 2))
        top, left = self.choose_window(photo, window, rng)
        seen = photo[top : top + window[0], left : left + window[1]]
        if self.sampling.drawing_share and rng.random() < self.sampling.drawing_share:
            seen = draw_over(seen, rng)
        return photo_clip(seen, self.cut_frames, size, rng)

    def cut_video(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crop a clip ``t h w c`` uint8 to the padded size after shrinking it by a random factor."""
        size = self.padded
        height, width = clip.shape[1:3]
        largest = min(self.sampling.max_shrink, height / size[0], width / size[1])
        shrink = float(rng.uniform(1, max(1.0, largest)))
        window = (min(height, round(size[0] * shrink)), min(width, round(size[1] * shrink)))
        top, left = self.choose_window(clip[0], window, rng)
        crop = clip[:, top : top + window[0], left : left + window[1]]
        if window == size:
            return np.asarray(crop)
        return np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in crop])

    def unfit(self, length: int, height: int, width: int, photo: bool = False) -> str | None:
        """Return why no clip can be cut out of a source of this length and size, or ``None`` if one can."""
        if height < self.padded[0] or width < self.padded[1]:
            return f"({height}x{width}) is smaller than crop and margin"
        if not photo and length < self.frames:
            return f"has {length} frames, fewer than a clip"
        return None


class ClipDataset(ClipStream):
    """Clips of ``frames`` frames from the videos and photographs in one or more folders.

    An item is a pure function of (``seed``, index), independent of workers, order and earlier items. The stream is
    endless: every index from 0 on is valid.

    Args:
        root: one or more folders; searched recursively, in sorted order. ``NAME.txt`` beside a file is its caption.
        cache: folder of decoded frames, about 2.8 MB per 720p frame; ``None`` is ``~/.cache/ldm-video``.
        options: those of :class:`ClipStream`.

    Items are those of :class:`ClipStream`; ``name`` is the file name. In the hole, ``lr`` is made from paint, so it
    reveals nothing of ``hr``.

    Raises ``UserError`` for a missing folder, when no file is usable and when the cache cannot be written; an unusable
    file is logged and skipped.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        cache: str | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.cache = FrameCache(DEFAULT_CACHE if cache is None else cache, self.sampling.max_frames)
        self.sources = self._open(places("root", root))
        self.shares = self._shares()
        self._open_arrays: dict[Path, np.ndarray] = {}

    def __getitem__(self, index: int) -> Item:
        if index < 0:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        path = self.sources[rng.choice(len(self.sources), p=self.shares)]
        source = self._frames(path)
        if is_image(path):
            clip = self.cut_photo(source[0], rng)
        else:
            clip = self.cut_video(source[self.draw_times(len(source), self.cut_frames, rng)], rng)
        return self.make_item(clip, path.name, read_caption(path), rng)

    def _open(self, roots: Sequence[str | Path]) -> list[Path]:
        """Return the sources that can be decoded and are large and long enough; decode those not yet cached."""
        paths: list[Path] = []
        for folder in (Path(root).expanduser() for root in roots):
            if not folder.is_dir():
                raise UserError(f"data folder {folder} does not exist; set data.root to a folder of videos or photos")
            paths += find_sources(folder)
        usable: list[Path] = []
        left_out = []
        for path in dict.fromkeys(paths):
            if usable and looking():
                break
            try:
                length, height, width = self.cache.frames(path).shape[:3]
            except CacheError:
                raise
            except UserError as error:
                left_out.append(str(error))
                continue
            if reason := self.unfit(length, height, width, is_image(path)):
                left_out.append(f"{path} {reason}")
            else:
                usable.append(path)
        if left_out:
            log.warning("left out %d of %d files: %s", len(left_out), len(paths), "; ".join(left_out))
        if not usable:
            wanted = f"{self.frames} frames of {self.padded[0]}x{self.padded[1]}"
            where = ", ".join(str(root) for root in roots)
            raise UserError(f"no usable video or photo in {where}; put in videos of at least {wanted}")
        return usable

    def _shares(self) -> np.ndarray:
        """Return each source's probability, see :class:`data.sampling.Sampling`; photos sum to ``photo_share``."""
        shares = np.array([self._source_weight(self.cache.frames(path)) for path in self.sources])
        photos = np.array([is_image(path) for path in self.sources])
        if photos.any() and not photos.all():
            photo_share = self.sampling.photo_share
            shares[photos] *= photo_share / shares[photos].sum()
            shares[~photos] *= (1 - photo_share) / shares[~photos].sum()
        return shares / shares.sum()

    def _source_weight(self, frames: np.ndarray) -> float:
        pixels = float(np.prod(frames.shape[:3]))
        power = self.sampling.detail_power
        return pixels * (_detail(frames[0]) + 1e-3) ** power if power else pixels

    def _frames(self, path: Path) -> np.ndarray:
        """Return the frames of a source, from an LRU cache of open memory maps."""
        frames = self._open_arrays.pop(path, None)
        self._open_arrays[path] = frames = self.cache.frames(path) if frames is None else frames
        if len(self._open_arrays) > _OPEN_ARRAYS:
            del self._open_arrays[next(iter(self._open_arrays))]
        return frames

    def __getstate__(self) -> dict[str, object]:
        # Pickling a memory map copies the whole array, so workers started by `spawn` open their own.
        return {**self.__dict__, "_open_arrays": {}}


def make_pair(
    clip: np.ndarray, mask: np.ndarray, margin: int, scale: float, config: Degradation, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Paint over the hole, degrade the clip with a margin around the crop, and cut the margin off.

    Args:
        clip: ``t (H + 2 margin) (W + 2 margin) c`` uint8.
        mask: ``t 1 H W`` float32 in {0, 1}.
        margin: a positive multiple of ``scale``, so that both crops show the same window.

    Returns ``hr`` ``t 3 H W`` and ``lr`` ``t 3 H/s W/s`` in [-1, 1], and ``hole``, the mask.
    """
    # A hole at the edge of the crop continues into the margin, else the blur would leak content back into it.
    wide = np.pad(mask[:, 0], ((0, 0), (margin, margin), (margin, margin)), mode="edge")  # t h w
    painted = rearrange(paint_hole(clip, wide, rng), "t h w c -> t c h w")
    lowres = degrade(to_signed(torch.from_numpy(painted)), scale, config, rng)
    low = int(margin / exact_scale(scale))
    hr = rearrange(clip[:, margin:-margin, margin:-margin], "t h w c -> t c h w")
    return {
        "hr": to_signed(torch.from_numpy(hr)).contiguous(),
        "lr": lowres[..., low:-low, low:-low].contiguous(),
        "hole": torch.from_numpy(mask),
    }


def _preset(name: str) -> Degradation:
    if name not in PRESETS:
        raise UserError(f"unknown degradation {name!r}; use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _largest_stride(length: int, frames: int) -> int:
    return length if frames == 1 else (length - 1) // (frames - 1)


def _detail(window: np.ndarray) -> float:
    """Return the mean squared gradient of every second pixel of green: cheap, and the largest part of luma."""
    green = window[::2, ::2, 1].astype(np.float32)
    return float(np.square(np.diff(green, axis=0)).mean() + np.square(np.diff(green, axis=1)).mean())
