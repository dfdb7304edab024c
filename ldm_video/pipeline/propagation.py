"""Propagate what other frames show into the hole, along completed flow, with a confidence for each pixel.

As in flow-guided inpainting (ProPainter, arXiv:2309.03897): a point of the hole is tracked forwards and backwards to
the first frame that shows it, and that frame is sampled once, at the composed position. The reliability of the result
is measured, not assumed: the rim of the hole, where the truth is known, is propagated in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ldm_video.core.evidence import lay_on_grid
from ldm_video.core.push_pull import push_pull
from ldm_video.core.tensors import size_of, to_bytes
from ldm_video.motion.search import dense_flow
from ldm_video.motion.warp import at
from ldm_video.pipeline.flow import FlowPair, clip_flows, grow, spread

THRESHOLD = 0.5  # confidence from which a pixel counts as evidence

_RIM = 3  # pixels around the hole that are propagated too, to compare with their true colours
_HALF_CONFIDENCE_ERROR = 3.7e-3  # expected squared error, of colours in [0, 1], at confidence 1/2: 24 dB
_MARGIN = 0.25  # margin around the hole for estimating the camera motion, as a fraction of the frame's long side
_MIN_MARGIN = 128  # pixels
_DRIFT = 0.1  # pixels per frame: slower motion cannot be told from flow error
_MIN_SIDE = 16  # pixels; dense inverse search needs at least as many
_MIN_MOTION = 1.0  # pixels over half a segment: less motion reveals nothing behind a hole
_CHUNK = 256  # points per row of a cv2.remap map, whose row length is limited


_Window = tuple[slice, slice]  # rows and columns


def propagate(frames: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the hole from other frames of a segment, where one of them shows what it hides.

    Args:
        frames: ``t 3 h w`` in [-1, 1].
        hole: ``t 1 h w`` in {0, 1}, on the same grid; it must cover every pixel that cannot be trusted.

    Returns ``filled`` ``t 3 h w`` in [-1, 1] and ``confidence`` ``t 1 h w`` in [0, 1]: 1 outside the hole, 0 where no
    frame shows the place; there ``filled`` is ``frames``. Nothing is filled in frames with a side under 16 pixels, and
    nothing is propagated between frames that have nothing in common, as across a cut.
    """
    confidence = 1 - hole.float()
    union = (hole.amax(dim=(0, 1)) > 0.5).cpu().numpy()  # h w
    if len(frames) < 2 or min(union.shape) < _MIN_SIDE or not union.any():
        return frames, confidence
    rows, columns = _window(union, max(_MIN_MARGIN, round(_MARGIN * max(union.shape))))
    part, mask = frames[..., rows, columns].float(), hole[..., rows, columns].float()
    smooth = push_pull(part, 1 - mask)
    clip = rearrange((part.cpu() + 1) / 2, "t c h w -> t h w c").contiguous().numpy()
    holes = (mask[:, 0] > 0.5).cpu().numpy()  # t h w
    flows = clip_flows([_grey(frame) for frame in smooth.cpu()], list(holes))
    segment = _Segment(clip, holes.astype(np.float32), flows)
    filled = frames.clone()
    part, certainties = filled[..., rows, columns], confidence[:, 0, rows, columns]  # views
    for t in np.flatnonzero(holes.any(axis=(1, 2))):
        window = _window(holes[t], _RIM)
        colours, certainty = _fill_frame(int(t), window, segment)
        seen = holes[t][window] & (certainty > 0)
        new = rearrange(torch.from_numpy(colours), "h w c -> c h w").to(frames) * 2 - 1
        part[t][:, *window] = torch.where(
            torch.from_numpy(seen).to(frames.device), new.clamp(-1, 1), part[t][:, *window]
        )
        certainties[t][window] += torch.from_numpy(certainty * seen).to(confidence)
    return filled, confidence


def with_propagated(lowres: Tensor, hole: Tensor, always: bool) -> tuple[Tensor, Tensor]:
    """Fill low-res frames ``b t 3 h w`` from each other within the hole ``b t 1 H W``; return both, with the hole left.

    Unless ``always``, a clip in which neither camera nor hole moves comes back unchanged.
    """
    frames = lowres[0]
    hidden = lay_on_grid(hole[0], size_of(frames))  # t 1 h w
    if not always and not may_show_more(frames, hidden):
        return lowres, hole
    filled, confidence = propagate(frames, hidden)
    frames, left = reduce_hole(frames, hole[0], filled, confidence)
    return frames[None], left[None]


def may_show_more(frames: Tensor, hole: Tensor) -> bool:
    """Return whether other frames may show what the hole hides: the hole moves, or its surroundings do.

    Uses only the flow from the first frame to the middle and to the last one: a small part of the work of
    :func:`propagate`, which finds nothing if neither moves. Takes the same arguments.
    """
    union = hole.amax(dim=(0, 1)) > 0.5  # h w
    if len(frames) < 2 or min(union.shape) < _MIN_SIDE or not union.any():
        return False
    if not torch.equal(hole.amin(dim=(0, 1)) > 0.5, union):
        return True
    # Fill the hole smoothly: its contents must not be tracked as something static.
    three = frames[[0, len(frames) // 2, -1]].float()  # 3 3 h w
    greys = [_grey(frame) for frame in push_pull(three, 1 - hole[:1].float().expand(3, -1, -1, -1))]
    around = ~union.cpu().numpy()
    flows = [dense_flow(greys[0], other, cv2.DISOPTICAL_FLOW_PRESET_FAST) for other in greys[1:]]
    moved = [np.hypot(*np.moveaxis(flow, -1, 0)) for flow in flows]
    return any(float(np.quantile(m[around], 0.75)) > _MIN_MOTION for m in moved) if around.any() else False


def reduce_hole(frames: Tensor, hole: Tensor, filled: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Turn propagated pixels into evidence: return ``(frames t 3 h w, hole t 1 H W)`` with a smaller hole.

    Args:
        frames, filled, confidence: arguments and results of :func:`propagate`, on the low-res grid.
        hole: ``t 1 H W`` in {0, 1} on the output's grid, from which the hole for :func:`propagate` was made.
        threshold: pixels of at least this confidence count as seen. Specks are removed from both the seen and the
            remaining pixels: a model could do nothing with them.
    """
    size = size_of(hole)
    unknown = _majority((confidence < THRESHOLD).to(hole)) * (confidence < 1)  # t 1 h w
    unknown = torch.maximum(unknown, (confidence == 0).to(hole))
    left = hole * F.interpolate(unknown, size=size, mode="nearest-exact")  # t 1 H W
    # Low-res pixels under the remaining hole are not read and may keep their colours.
    return torch.where(unknown.bool(), frames, filled), left


def won_share(hole: Tensor, confidence: Tensor) -> float:
    """Return the fraction of the hole ``t 1 h w`` that other frames show; 0 without a hole."""
    area = float(hole.sum())
    return float((hole * (confidence >= THRESHOLD)).sum()) / area if area else 0.0


@dataclass(frozen=True)
class _Segment:
    """``clip`` ``t h w 3`` in [0, 1]; ``hidden`` ``t h w`` float32 in {0, 1}: the holes; ``flows`` of neighbours."""

    clip: np.ndarray
    hidden: np.ndarray
    flows: Sequence[FlowPair | None]


@dataclass(frozen=True)
class _Candidate:
    """What one direction gives for one frame.

    ``colours`` ``h w 3`` in [0, 1]; ``steps`` ``h w``, distance in frames, 0 for none; ``error`` ``h w``, squared,
    measured on the rim and spread inwards.
    """

    colours: np.ndarray
    steps: np.ndarray
    error: np.ndarray


def _fill_frame(t: int, window: _Window, segment: _Segment) -> tuple[np.ndarray, np.ndarray]:
    """Return colours ``h w 3`` in [0, 1] and confidence ``h w`` in the hole of frame ``t``, in a window around it."""
    pair = [_track_one_way(t, step, window, segment) for step in (1, -1)]
    both = (pair[0].steps > 0) & (pair[1].steps > 0)
    disagreement = cv2.blur(np.square(pair[0].colours - pair[1].colours).mean(axis=-1), (3, 3))
    errors = np.stack([_expected_error(c, both, disagreement) for c in pair])  # 2 h w
    # Nearly winner takes all: the mean of two that disagree is a ghost.
    weights = (errors.min(axis=0) / errors) ** 4
    weights /= weights.sum(axis=0)
    colours = (weights[0, ..., None] * pair[0].colours + weights[1, ..., None] * pair[1].colours).astype(np.float32)
    seen = (pair[0].steps > 0) | (pair[1].steps > 0)
    return colours, np.where(seen, 1 / (1 + errors.min(axis=0) / _HALF_CONFIDENCE_ERROR), 0).astype(np.float32)


def _expected_error(candidate: _Candidate, both: np.ndarray, disagreement: np.ndarray) -> np.ndarray:
    """Return the expected squared error ``h w``: a fit to 30 clips and holes, rank correlation with the truth 0.7."""
    rim = (candidate.error + 1e-4) ** 0.85
    error = 0.1 * rim * np.maximum(candidate.steps, 1) ** 0.1 * np.where(both, 2.5 * (disagreement + 1e-4) ** 0.2, 1.0)
    return np.where(candidate.steps > 0, error, 1e3)


def _track_one_way(t: int, step: int, window: _Window, segment: _Segment) -> _Candidate:
    """Collect what frames after (``step`` 1) or before (-1) frame ``t`` show in its hole, in a window around it."""
    frame, hole = segment.clip[t][window], segment.hidden[t][window] > 0
    colours, steps = np.zeros_like(frame), np.zeros(hole.shape, np.float32)
    inside = np.nonzero(hole)
    corner = window[1].start, window[0].start
    colours[inside], steps[inside] = _track(t, step, _points(inside, corner), np.ones(len(inside[0])), segment)
    # Track the rim to frames as far away as those that serve its neighbours in the hole: else its error says nothing
    # about theirs.
    side = (2 * _RIM + 1,) * 2
    rim = np.nonzero(grow(hole, _RIM) & ~hole)
    min_steps = np.maximum(cv2.dilate(steps, np.ones(side, np.uint8))[rim], 1)
    read, found = _track(t, step, _points(rim, corner), min_steps, segment)
    errors = np.zeros((*hole.shape, 4), np.float32)  # difference of three channels, mean squared difference
    difference = np.where(found[:, None] > 0, frame[rim] - read, 0)  # n 3
    errors[rim] = np.concatenate([difference, np.square(difference).mean(axis=1, keepdims=True)], axis=1)
    measured = np.zeros(hole.shape, np.float32)
    measured[rim] = found > 0
    inward = spread(errors, measured)
    # Adding the rim's colour difference, spread inwards, leaves no seam.
    return _Candidate(colours + inward[..., :3], steps, inward[..., 3])


def _track(
    t: int, step: int, points: np.ndarray, min_steps: np.ndarray, segment: _Segment
) -> tuple[np.ndarray, np.ndarray]:
    """Track ``points`` ``n 2`` (x, y) of frame ``t`` to the first frame, at least ``least`` away, that shows them.

    Returns their colours there ``n 3`` and its distance ``n`` in frames, 0 if there is none.
    """
    height, width = segment.hidden[t].shape
    colours, steps = np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.float32)
    start, alive = points, np.arange(len(points))
    s = t
    while len(alive) and 0 <= s + step < len(segment.clip):
        pair = segment.flows[min(s, s + step)]
        if pair is None:
            break
        points = points + _sample(pair.forward if step > 0 else pair.backward, points)
        s += step
        x, y = points[:, 0], points[:, 1]
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        shown = inside & (_sample(segment.hidden[s], points)[:, 0] < 1e-3) & (abs(s - t) >= min_steps[alive])
        # Either the hole moved off the place, or the place moved out of it faster than flow drifts.
        displacement = points - start[alive]
        slow = np.hypot(displacement[:, 0], displacement[:, 1]) <= _DRIFT * abs(s - t)
        shown &= ~slow | (_sample(segment.hidden[s], start[alive])[:, 0] < 0.5)
        colours[alive[shown]] = _sample(segment.clip[s], points[shown], cv2.INTER_CUBIC)
        steps[alive[shown]] = abs(s - t)
        going = inside & ~shown
        alive, points = alive[going], points[going]
    return colours, steps


def _sample(image: np.ndarray, points: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Sample ``image`` ``h w [c]`` at ``points`` ``n 2`` (x, y): ``n c``."""
    count = len(points)
    padded = np.pad(points, ((0, -count % _CHUNK if count else _CHUNK), (0, 0)))
    values = at(image, rearrange(padded, "(a b) xy -> a b xy", b=_CHUNK), interpolation)
    return values.reshape(len(padded), -1)[:count]


def _window(mask: np.ndarray, margin: int) -> _Window:
    """Return the bounding rows and columns of the true pixels of ``mask`` ``h w``, plus a margin."""
    spans = (np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1))
    rows, columns = (slice(max(int(s[0]) - margin, 0), int(s[-1]) + margin + 1) for s in spans)
    return rows, columns


def _points(pixels: tuple[np.ndarray, ...], corner: tuple[int, int]) -> np.ndarray:
    """Convert (rows, columns) of a window with its corner at (x, y) to ``n 2``, x and y in the whole frame."""
    return (np.stack(pixels[::-1], axis=-1) + np.array(corner)).astype(np.float32)


def _grey(frame: Tensor) -> np.ndarray:
    """``3 h w`` in [-1, 1] -> ``h w`` uint8."""
    pixels = rearrange(to_bytes(frame), "c h w -> h w c").contiguous().cpu()
    return cv2.cvtColor(pixels.numpy(), cv2.COLOR_RGB2GRAY)


def _majority(mask: Tensor, side: int = 3) -> Tensor:
    """Return the majority of each pixel's neighbourhood, ``t 1 h w`` in {0, 1}."""
    return (F.avg_pool2d(mask, side, stride=1, padding=side // 2, count_include_pad=False) > 0.5).to(mask)
