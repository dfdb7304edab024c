"""The training set: clean clips, a hole in each, and the low-res version that an SD recording would have."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange
from torch.utils.data import Dataset

from data.cache import FrameCache, find_sources, is_photo
from data.degrade import PRESETS, DegradeConfig, degrade
from data.masks import check_weights, sample_mask
from data.motion import photo_clip
from data.paint import paint_hole
from ldm_video.core.errors import UserError
from ldm_video.core.tensors import to_signed

log = logging.getLogger(__name__)

MARGIN = 16  # high-res pixels around the crop that blur and codec may see
_PHOTO_WINDOW = 5  # half sides of a clip: room for the camera to move and to shrink what it sees
DEFAULT_CACHE = "~/.cache/ldm-video"
DEFAULT_MASKS: Mapping[str, float] = {
    "empty": 0.3, "blob": 0.2, "moving_blob": 0.15, "stroke": 0.1, "box": 0.08,
    "ellipse": 0.05, "scratch": 0.05, "logo": 0.05, "border": 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How a clip is cut out of a source.

    Attributes:
        max_stride: every 1st to ``max_stride``-th frame is taken.
        photo_share: share of the clips that are filmed photographs, where there are both photos and videos.
        max_shrink: content is shrunk by 1 to this factor before the crop, so that it is seen at several scales.
        candidates: crops that are drawn; the most detailed one is taken with probability ``prefer_detail``.
        max_frames: of a video that are decoded into the cache, from its start; 0 is all. Long films are better
            split into shots first.
    """

    max_stride: int = 2
    photo_share: float = 0.25
    max_shrink: float = 1.5
    candidates: int = 3
    prefer_detail: float = 0.7
    max_frames: int = 64


class ClipDataset(Dataset):
    """Clips of ``frames`` frames from the videos and photographs under some folders.

    An item is a pure function of (``seed``, index): it depends on no worker, no order and no earlier item. The stream
    is endless: any index from 0 on is an item.

    Args:
        root: a folder, or several; searched recursively, in sorted order.
        size: of the high-res crop, a multiple of ``scale``: one side or (height, width).
        scale: high-res pixels for one low-res pixel.
        degrade: a configuration or the name of a preset.
        masks: family name -> weight, see :mod:`data.masks`.
        length: items that one pass takes where nobody says otherwise (validation).
        cache: folder of decoded frames, about 2.8 MB for each 720p frame; ``None`` is ``~/.cache/ldm-video``.
        sampling: the attributes of :class:`Sampling`.

    Each item is a dict of ``hr`` ``t 3 H W`` and ``lr`` ``t 3 H/s W/s`` in [-1, 1], ``hole`` ``t 1 H W`` in {0, 1},
    all float32, and ``name``, the file's. In the hole ``lr`` was made from paint, so nothing of ``hr`` shows there.

    Raises ``UserError`` for a missing folder or when no file can be used; a file that cannot be is logged and left out.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        frames: int = 5,
        size: int | tuple[int, int] = 128,
        scale: int = 4,
        degrade: DegradeConfig | str = "sd",
        masks: Mapping[str, float] | None = None,
        seed: int = 0,
        length: int = 1000,
        cache: str | Path | None = None,
        **sampling: float,
    ) -> None:
        self.frames, self.scale, self.seed = frames, scale, seed
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.degrade = _preset(degrade) if isinstance(degrade, str) else degrade
        self.masks = dict(DEFAULT_MASKS if masks is None else masks)
        self.length = length
        if unknown := sorted(sampling.keys() - {field.name for field in fields(Sampling)}):
            raise UserError(f"unknown data option {unknown[0]!r}; see data.clips.ClipDataset and Sampling")
        self.sampling = Sampling(**sampling)  # type: ignore[arg-type]
        check_weights(self.masks)
        if self.size[0] % scale or self.size[1] % scale:
            raise UserError(
                f"crop size {self.size[0]}x{self.size[1]} is no multiple of scale {scale}; change one of them"
            )
        # The margin must fall on whole low-res pixels, or the crop of the low-res frames would be shifted.
        self.margin = -(-MARGIN // scale) * scale
        self.cache = FrameCache(DEFAULT_CACHE if cache is None else cache, self.sampling.max_frames)
        self.sources = self._open([root] if isinstance(root, str | Path) else root)
        self.shares = self._shares()
        self._open_arrays: dict[Path, np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        if index < 0:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index])
        path = self.sources[rng.choice(len(self.sources), p=self.shares)]
        padded = (self.size[0] + 2 * self.margin, self.size[1] + 2 * self.margin)
        clip = self._cut(self._frames(path), is_photo(path), padded, rng)  # t h w c
        mask = sample_mask(rng, self.frames, self.size, self.masks)  # t 1 H W
        pair = make_pair(clip, mask, self.margin, self.scale, self.degrade, rng)
        return {**pair, "name": path.name}

    def _cut(self, source: np.ndarray, photo: bool, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """A clip ``t h w c`` uint8 of ``size`` from a source ``t h w c``: crop, shrink, flip, reverse."""
        clip = self._cut_photo(source[0], size, rng) if photo else self._cut_video(source, size, rng)
        if rng.random() < 0.5:
            clip = clip[:, :, ::-1]
        if rng.random() < 0.5:
            clip = clip[::-1]
        return np.ascontiguousarray(clip)

    def _cut_photo(self, photo: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Film a part of the photo, most often a detailed one: large ones are half sky."""
        window = (min(photo.shape[0], _PHOTO_WINDOW * size[0] // 2), min(photo.shape[1], _PHOTO_WINDOW * size[1] // 2))
        top, left = self._choose_window(photo, window, rng)
        return photo_clip(photo[top : top + window[0], left : left + window[1]], self.frames, size, rng)

    def _cut_video(self, source: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        length, height, width = source.shape[:3]
        stride = int(rng.integers(1, min(self.sampling.max_stride, _largest_stride(length, self.frames)) + 1))
        start = int(rng.integers(length - (self.frames - 1) * stride))
        times = slice(start, start + (self.frames - 1) * stride + 1, stride)
        largest = min(self.sampling.max_shrink, height / size[0], width / size[1])
        shrink = float(rng.uniform(1, max(1.0, largest)))
        window = (min(height, round(size[0] * shrink)), min(width, round(size[1] * shrink)))
        top, left = self._choose_window(source[start], window, rng)
        crop = source[times, top : top + window[0], left : left + window[1]]
        if window == size:
            return np.asarray(crop)
        return np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in crop])

    def _choose_window(self, frame: np.ndarray, window: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """(top, left) of a window, most often the one of several with the largest gradients."""
        ends = [frame.shape[0] - window[0] + 1, frame.shape[1] - window[1] + 1]
        draws = [(int(y), int(x)) for y, x in rng.integers(0, ends, (self.sampling.candidates, 2))]
        if rng.random() >= self.sampling.prefer_detail:
            return draws[0]
        return max(draws, key=lambda at: _detail(frame[at[0] : at[0] + window[0], at[1] : at[1] + window[1]]))

    def _open(self, roots: Sequence[str | Path]) -> list[Path]:
        """The sources that can be decoded and are large and long enough; decodes what the cache lacks."""
        paths: list[Path] = []
        for folder in (Path(root).expanduser() for root in roots):
            if not folder.is_dir():
                raise UserError(f"data folder {folder} does not exist; set data.root to a folder of videos or photos")
            paths += find_sources(folder)
        usable, left_out = [], []
        smallest = [n + 2 * self.margin for n in self.size]
        for path in dict.fromkeys(paths):
            try:
                length, height, width = self.cache.frames(path).shape[:3]
            except UserError as error:
                left_out.append(str(error))
                continue
            if height < smallest[0] or width < smallest[1]:
                left_out.append(f"{path} ({height}x{width}) is smaller than crop and margin")
            elif not is_photo(path) and length < self.frames:
                left_out.append(f"{path} has {length} frames, fewer than a clip")
            else:
                usable.append(path)
        if left_out:
            log.warning("left out %d of %d files: %s", len(left_out), len(paths), "; ".join(left_out))
        if not usable:
            wanted = f"{self.frames} frames of {smallest[0]}x{smallest[1]}"
            where = ", ".join(str(root) for root in roots)
            raise UserError(f"no usable video or photo in {where}; put in videos of at least {wanted}")
        return usable

    def _shares(self) -> np.ndarray:
        """Probability of each source: in proportion to its pixels, photos together ``photo_share``."""
        shares = np.array([float(np.prod(self.cache.frames(path).shape[:3])) for path in self.sources])
        photos = np.array([is_photo(path) for path in self.sources])
        if photos.any() and not photos.all():
            photo_share = self.sampling.photo_share
            shares[photos] *= photo_share / shares[photos].sum()
            shares[~photos] *= (1 - photo_share) / shares[~photos].sum()
        return shares / shares.sum()

    def _frames(self, path: Path) -> np.ndarray:
        if path not in self._open_arrays:
            self._open_arrays[path] = self.cache.frames(path)
        return self._open_arrays[path]

    def __getstate__(self) -> dict[str, object]:
        # A memory map is pickled as the whole array: workers started by `spawn` open their own.
        return {**self.__dict__, "_open_arrays": {}}


def make_pair(
    clip: np.ndarray, mask: np.ndarray, margin: int, scale: int, config: DegradeConfig, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Paint the hole over, degrade with a margin around the crop, and cut the margin off.

    Args:
        clip: ``t (H + 2 margin) (W + 2 margin) c`` uint8.
        mask: ``t 1 H W`` float32 in {0, 1}.
        margin: a positive multiple of ``scale``, so that both crops show the same window.

    Returns ``hr`` ``t 3 H W`` and ``lr`` ``t 3 H/s W/s`` in [-1, 1], and ``hole``, the mask.
    """
    # A hole that reaches the crop's side goes on outside it, else its content would come back through the blur.
    wide = np.pad(mask[:, 0], ((0, 0), (margin, margin), (margin, margin)), mode="edge")  # t h w
    painted = rearrange(paint_hole(clip, wide, rng), "t h w c -> t c h w")
    lowres = degrade(to_signed(torch.from_numpy(painted)), scale, config, rng)
    low = margin // scale
    hr = rearrange(clip[:, margin:-margin, margin:-margin], "t h w c -> t c h w")
    return {
        "hr": to_signed(torch.from_numpy(hr)).contiguous(),
        "lr": lowres[..., low:-low, low:-low].contiguous(),
        "hole": torch.from_numpy(mask),
    }


def _preset(name: str) -> DegradeConfig:
    if name not in PRESETS:
        raise UserError(f"unknown degradation {name!r}; use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _largest_stride(length: int, frames: int) -> int:
    return length if frames == 1 else (length - 1) // (frames - 1)


def _detail(window: np.ndarray) -> float:
    """Mean squared gradient of the green channel on every second pixel: cheap, and luma's largest part."""
    green = window[::2, ::2, 1].astype(np.float32)
    return float(np.square(np.diff(green, axis=0)).mean() + np.square(np.diff(green, axis=1)).mean())
