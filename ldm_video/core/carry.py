"""What few frames of a clip have, carried along the motion to all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ldm_video.core.motion_average import AlignedClip
from ldm_video.core.pictures import grid_of, read_at


def key_frames(count: int, every: int) -> list[int]:
    """One of at most ``every`` frames in a row, in the middle of its group; a clip's groups are about equally long."""
    groups = -(-count // every)
    return [(2 * group + 1) * count // (2 * groups) for group in range(groups)]


def carry(pictures: Tensor, keys: Sequence[int], guide: Tensor, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What key frames show, for every frame.

    A frame between two key frames takes from both, from the nearer one more, along the motion that the guide shows.

    Args:
        pictures: ``k c H W`` of the key frames.
        keys: their numbers, rising.
        guide: low-res frames ``t 3 h w`` in [-1, 1], which tell motion and agreement.
        hidden: ``t 1 h w`` in {0, 1}; 1 = the guide says nothing there, and nothing is carried to it or from it.

    Yields, float32, of frame after frame what it is shown, ``c H W``, and how sure that is, ``H W``: from 0 (no key
    frame shows it) to 1. Key frames are shown their own, for sure, hidden or not.
    """
    clip, size = AlignedClip(guide, hidden), (pictures.shape[-2], pictures.shape[-1])
    grid = grid_of(size, pictures.device)  # 2 H W
    sources = {key: picture.float() for key, picture in zip(keys, pictures, strict=True)}
    for t in range(len(guide)):
        if t in sources:
            yield sources[t], torch.ones(size, device=pictures.device)
            continue
        total, mass = torch.zeros_like(sources[keys[0]]), torch.zeros(size, device=pictures.device)  # c H W, H W
        sure = torch.zeros_like(mass)
        shares = _shares(t, keys)
        for neighbour in clip.look(t, shares):
            motion, weight = neighbour.on_grid(size, pictures.device)
            share = shares[neighbour.frame] * weight  # H W
            total.addcmul_(share, read_at(sources[neighbour.frame], grid + motion))
            mass += share
            sure = torch.maximum(sure, weight)
        yield total / mass.clamp(min=1e-6), sure


def _shares(t: int, keys: Sequence[int]) -> dict[int, float]:
    """Key frames on both sides of ``t`` and what each of them counts; together 1."""
    before, after = [key for key in keys if key < t][-1:], [key for key in keys if key > t][:1]
    if not before or not after:
        return dict.fromkeys(before + after, 1.0)
    (first,), (second,) = before, after
    return {first: (second - t) / (second - first), second: (t - first) / (second - first)}
