"""What few frames of a clip have, carried along the motion to all of them."""

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
    """What is new in parts of a frame that no key frame shows.

    Attributes:
        picture: ``c H W``, float32.
        shown: ``H W`` in [0, 1], where it is to be seen.
    """

    picture: Tensor
    shown: Tensor


def key_frames(count: int, every: int) -> list[int]:
    """One of at most ``every`` frames in a row, in the middle of its group; a clip's groups are about equally long."""
    groups = -(-count // every)
    return [(2 * group + 1) * count // (2 * groups) for group in range(groups)]


def frames_between(count: int, keys: Sequence[int]) -> list[int]:
    """Frames half as far from a key frame as anything is: two for each key frame, where there is room for them."""
    borders = [(before + after) // 2 for before, after in pairwise(keys)]
    groups = zip([0, *borders], [*borders, count - 1], keys, strict=True)
    halves = {half for first, last, key in groups for half in ((first + key) // 2, (key + last + 1) // 2)}
    return sorted(halves - set(keys))


def sureness(clip: AlignedClip, frames: Sequence[int], keys: Sequence[int]) -> Iterator[np.ndarray]:
    """How surely key frames show what each of ``frames`` does, on the low-res grid: ``h w`` in [0, 1]."""
    for neighbours in clip.look((t, list(_shares(t, keys))) for t in frames):
        yield np.maximum.reduce([neighbour.weight for neighbour in neighbours])


def carry(
    clip: AlignedClip, pictures: Mapping[int, Tensor], repairs: Mapping[int, Repair] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """What key frames show, for every frame.

    A frame between two key frames takes from both, from the nearer one more, along the motion of the low-res frames.
    Of what neither shows it takes from repairs, of those between the same key frames and from the nearer one first.

    Args:
        clip: the low-res frames, which tell motion and agreement; nothing is carried to or from what is hidden there.
        pictures: of the key frames, by their numbers, each ``c H W``.
        repairs: of other frames, by their numbers.

    Yields, float32, of frame after frame what it is shown, ``c H W``, and how sure that is, ``H W``: from 0 (no frame
    shows it) to 1. Key frames are shown their own, for sure, hidden or not.
    """
    repairs = repairs or {}
    keys, sources = sorted(pictures), {key: picture.float() for key, picture in pictures.items()}
    first = sources[keys[0]]
    grid = grid_of(size_of(first), first.device)  # 2 H W
    near = {t: _nearest(t, keys, repairs) for t in range(len(clip.images))}
    wanted = ((t, [other for other in (*_shares(t, keys), *near[t]) if other != t]) for t in near if t not in sources)
    looked = clip.look(wanted)
    for t in near:
        if t in sources:
            yield sources[t], torch.ones_like(first[0])
            continue
        points = {neighbour.frame: _points(neighbour, grid) for neighbour in next(looked)}
        total, mass = torch.zeros_like(first), torch.zeros_like(first[0])  # c H W, H W
        sure = torch.zeros_like(mass)
        for key, part in _shares(t, keys).items():
            where, weight = points[key]
            share = part * weight  # H W
            total.addcmul_(share, read_at(sources[key], where))
            mass += share
            sure = torch.maximum(sure, weight)
        yield _repaired(t, total / mass.clamp(min=1e-6), sure, near[t], points)


def _repaired(
    t: int, picture: Tensor, sure: Tensor, repairs: Mapping[int, Repair], points: Mapping[int, tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """``picture`` ``c H W`` with as much of the repairs, in turn, as is not sure ``H W``; and how sure that is."""
    total = sure * picture
    for frame, repair in repairs.items():
        if frame == t:
            shown, weight = repair.picture, (1 - sure) * repair.shown
        else:
            where, agrees = points[frame]
            both = read_at(torch.cat([repair.picture, repair.shown[None]]), where)  # (c 1) H W
            shown, weight = both[:-1], (1 - sure) * agrees * both[-1].clamp(0, 1)
        total = total.addcmul(weight, shown)
        sure = sure + weight
    return total / sure.clamp(min=1e-6), sure


def _points(neighbour: Neighbour, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel of ``grid`` ``2 H W`` is in the neighbour, ``2 H W``, and how far that agrees, ``H W``."""
    motion, weight = neighbour.on_grid(size_of(grid), grid.device)
    return grid + motion, weight


def _around(t: int, keys: Sequence[int]) -> tuple[list[int], list[int]]:
    """The key frame before ``t`` and the one after it, each where there is one."""
    return [key for key in keys if key < t][-1:], [key for key in keys if key > t][:1]


def _shares(t: int, keys: Sequence[int]) -> dict[int, float]:
    """Key frames on both sides of ``t`` and what each of them counts; together 1."""
    before, after = _around(t, keys)
    if not before or not after:
        return dict.fromkeys(before + after, 1.0)
    (first,), (second,) = before, after
    return {first: (second - t) / (second - first), second: (t - first) / (second - first)}


def _nearest(t: int, keys: Sequence[int], repairs: Mapping[int, Repair]) -> dict[int, Repair]:
    """Repairs of frames between the same key frames as ``t``, the nearest one first."""
    between = [frame for frame in repairs if _around(frame, keys) == _around(t, keys)]
    return {frame: repairs[frame] for frame in sorted(between, key=lambda frame: abs(frame - t))}
