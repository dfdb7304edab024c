"""Propagate pictures of a few key frames along the motion to all frames of a clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ldm_video.core.tensors import size_of
from ldm_video.motion.alignment import AlignedClip, Neighbour
from ldm_video.motion.pictures import grid_of, read_at


@dataclass(frozen=True)
class Repair:
    """New content for parts of a frame that no key frame shows.

    Attributes:
        picture: ``c H W``, float32.
        shown: ``H W`` in [0, 1], opacity of the repair.
    """

    picture: Tensor
    shown: Tensor


def key_frames(count: int, every: int) -> list[int]:
    """Split ``count`` frames into about equal groups of at most ``every``; return the middle frame of each."""
    groups = -(-count // every)
    return [(2 * group + 1) * count // (2 * groups) for group in range(groups)]


def frames_between(count: int, keys: Sequence[int]) -> list[int]:
    """Return the frames half way between each key frame and both ends of its group.

    Two for each key frame, fewer where there is no room for them. Groups meet half way between key frames.
    """
    borders = [(before + after) // 2 for before, after in pairwise(keys)]
    groups = zip([0, *borders], [*borders, count - 1], keys, strict=True)
    halves = {half for first, last, key in groups for half in ((first + key) // 2, (key + last + 1) // 2)}
    return sorted(halves - set(keys))


def sureness(clip: AlignedClip, frames: Sequence[int], keys: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield for each of ``frames`` how surely key frames show its content, on the low-res grid: ``h w`` in [0, 1]."""
    for neighbours in clip.look((t, list(_key_weights(t, keys))) for t in frames):
        yield np.maximum.reduce([neighbour.weight for neighbour in neighbours])


def carry(
    clip: AlignedClip, pictures: Mapping[int, Tensor], repairs: Mapping[int, Repair] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Propagate the key frames' pictures to every frame.

    A frame between two key frames blends both, weighted towards the nearer one, along the motion of the low-res frames.
    What neither shows is taken from repairs of frames between the same key frames, the nearest one first.

    Args:
        clip: the low-res frames, which provide motion and agreement; nothing is propagated to or from hidden pixels.
        pictures: key frame number -> picture ``c H W``.
        repairs: number of another frame -> repair.

    Yields:
        For each frame in turn, float32: the picture ``c H W`` and its confidence ``H W``, from 0 (no frame shows it) to
            1. Key frames yield their own picture with confidence 1, even where hidden.
    """
    repairs = repairs or {}
    keys, sources = sorted(pictures), {key: picture.float() for key, picture in pictures.items()}
    first = sources[keys[0]]
    grid = grid_of(size_of(first), first.device)  # 2 H W
    nearest = {t: _nearest_repairs(t, keys, repairs) for t in range(len(clip.images))}
    wanted = (
        (t, [other for other in (*_key_weights(t, keys), *nearest[t]) if other != t])
        for t in nearest
        if t not in sources
    )
    aligned = clip.look(wanted)
    for t in nearest:
        if t in sources:
            yield sources[t], torch.ones_like(first[0])
            continue
        points = {neighbour.frame: _sampling_points(neighbour, grid) for neighbour in next(aligned)}
        total, mass = torch.zeros_like(first), torch.zeros_like(first[0])  # c H W, H W
        confidence = torch.zeros_like(mass)
        for key, part in _key_weights(t, keys).items():
            where, weight = points[key]
            share = part * weight  # H W
            total.addcmul_(share, read_at(sources[key], where))
            mass += share
            confidence = torch.maximum(confidence, weight)
        yield _add_repairs(t, total / mass.clamp(min=1e-6), confidence, nearest[t], points)


def _add_repairs(
    t: int,
    picture: Tensor,
    confidence: Tensor,
    repairs: Mapping[int, Repair],
    points: Mapping[int, tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Blend repairs, in turn, into ``picture`` ``c H W`` where it is unsure; return it and its confidence ``H W``."""
    total = confidence * picture
    for frame, repair in repairs.items():
        if frame == t:
            shown, weight = repair.picture, (1 - confidence) * repair.shown
        else:
            where, agrees = points[frame]
            both = read_at(torch.cat([repair.picture, repair.shown[None]]), where)  # (c 1) H W
            shown, weight = both[:-1], (1 - confidence) * agrees * both[-1].clamp(0, 1)
        total = total.addcmul(weight, shown)
        confidence = confidence + weight
    return total / confidence.clamp(min=1e-6), confidence


def _sampling_points(neighbour: Neighbour, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Position of each pixel of ``grid`` ``2 H W`` in the neighbour, ``2 H W``, and the agreement there, ``H W``."""
    motion, weight = neighbour.on_grid(size_of(grid), grid.device)
    return grid + motion, weight


def _adjacent_keys(t: int, keys: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the last key frame before ``t`` and the first after it, each as a list of at most one."""
    return [key for key in keys if key < t][-1:], [key for key in keys if key > t][:1]


def _key_weights(t: int, keys: Sequence[int]) -> dict[int, float]:
    """Return the key frames on both sides of ``t`` with their interpolation weights, which sum to 1."""
    before, after = _adjacent_keys(t, keys)
    if not before or not after:
        return dict.fromkeys(before + after, 1.0)
    (first,), (second,) = before, after
    return {first: (second - t) / (second - first), second: (t - first) / (second - first)}


def _nearest_repairs(t: int, keys: Sequence[int], repairs: Mapping[int, Repair]) -> dict[int, Repair]:
    """Return the repairs of frames between the same key frames as ``t``, nearest first."""
    between = [frame for frame in repairs if _adjacent_keys(frame, keys) == _adjacent_keys(t, keys)]
    return {frame: repairs[frame] for frame in sorted(between, key=lambda frame: abs(frame - t))}
