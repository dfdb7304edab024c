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


def carry(values: Tensor, keys: Sequence[int], guide: Tensor, hidden: Tensor) -> Iterator[Tensor]:
    """Differences that key frames have, for every frame.

    A frame between two key frames takes from both, from the nearer one more, along the motion that the guide shows;
    what neither of them shows stays zero.

    Args:
        values: ``k c H W`` of the key frames.
        keys: their numbers, rising.
        guide: low-res frames ``t 3 h w`` in [-1, 1], which tell motion and agreement.
        hidden: ``t 1 h w`` in {0, 1}; 1 = the guide says nothing there, and nothing is carried to it or from it.

    Yields ``c H W`` of frame after frame, float32. Key frames keep their own, hidden or not.
    """
    clip, size = AlignedClip(guide, hidden), (values.shape[-2], values.shape[-1])
    grid = grid_of(size, values.device)  # 2 H W
    sources = {key: value.float() for key, value in zip(keys, values, strict=True)}
    for t in range(len(guide)):
        if t in sources:
            yield sources[t]
            continue
        total, mass = torch.zeros_like(sources[keys[0]]), torch.zeros(size, device=values.device)  # c H W, H W
        best = torch.zeros_like(mass)
        shares = _shares(t, keys)
        for neighbour in clip.look(t, shares):
            motion, weight = neighbour.on_grid(size, values.device)
            share = shares[neighbour.frame] * weight  # H W
            total.addcmul_(share, read_at(sources[neighbour.frame], grid + motion))
            mass += share
            best = torch.maximum(best, weight)
        yield best * total / mass.clamp(min=1e-6)


def _shares(t: int, keys: Sequence[int]) -> dict[int, float]:
    """Key frames on both sides of ``t`` and what each of them counts; together 1."""
    before, after = [key for key in keys if key < t][-1:], [key for key in keys if key > t][:1]
    if not before or not after:
        return dict.fromkeys(before + after, 1.0)
    (first,), (second,) = before, after
    return {first: (second - t) / (second - first), second: (t - first) / (second - first)}
