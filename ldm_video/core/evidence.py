"""Evidence: everything known about the high-resolution clip, on one canvas of the output's size.

Low-res frames are soft evidence outside the hole, known high-res pixels are hard evidence, the hole is none.
Upscaling, inpainting, both at once, outpainting and continuation are the same code on different canvases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.tensors import fold_time, size_of, unfold_time
from ldm_video.core.total_variation import continue_edges


@dataclass(frozen=True)
class Evidence:
    """What is known of a clip of size H x W. All tensors share ``b t . H W`` but ``lowres``.

    Attributes:
        guess: ``b t 3 H W`` in [-1, 1]. The canvas, with the hole filled from its rim, whose edges go on
            through it: a place to start from, not evidence.
        hole: ``b t 1 H W`` in {0, 1}. 1 = nothing is known here.
        known: ``b t 1 H W`` in {0, 1}. 1 = ``guess`` holds the exact high-res pixel. Disjoint from ``hole``.
        lowres: ``b t 3 h w`` in [-1, 1]. The low-res frames at their own size, their hole filled likewise.
    """

    guess: Tensor
    hole: Tensor
    known: Tensor
    lowres: Tensor

    @property
    def canvas(self) -> Tensor:
        """``b t 3 H W``: the evidence alone; mid-grey (0) in the hole, as Stable Diffusion inpainting has it."""
        return self.guess * (1 - self.hole)

    @property
    def size(self) -> tuple[int, int]:
        return size_of(self.guess)

    def map(self, function: Callable[[Tensor], Tensor]) -> Evidence:
        """Apply ``function`` to every tensor (to move it to a device, to cut out frames)."""
        return Evidence(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def crop(self, frames: slice, rows: slice, columns: slice) -> Evidence:
        """The part of the evidence at ``[frames, rows, columns]`` of the output grid.

        The low-res frames are cut where the cut falls on whole low-res pixels, else they are resized from the cut.
        """
        guess, hole, known = (x[:, frames, :, rows, columns] for x in (self.guess, self.hole, self.known))
        height, width = self.size
        low_height, low_width = self.lowres.shape[-2:]
        top, bottom, _ = rows.indices(height)
        left, right, _ = columns.indices(width)
        edges = [e * low_height / height for e in (top, bottom)] + [e * low_width / width for e in (left, right)]
        if all(e == int(e) for e in edges):
            y0, y1, x0, x1 = map(int, edges)
            return Evidence(guess, hole, known, self.lowres[:, frames, :, y0:y1, x0:x1])
        size = (max(1, round((bottom - top) * low_height / height)), max(1, round((right - left) * low_width / width)))
        return Evidence(guess, hole, known, resize(guess, size))


def build_evidence(
    lowres: Tensor, hole: Tensor, *, known_pixels: Tensor | None = None, known: Tensor | None = None
) -> Evidence:
    """Lay low-res frames, a hole and known high-res pixels on one canvas.

    Args:
        lowres: ``b t 3 h w`` in [-1, 1].
        hole: ``b t 1 H W`` in {0, 1}, at the output's size; it decides that size.
        known_pixels: ``b t 3 H W`` in [-1, 1], read where ``known`` is 1.
        known: ``b t 1 H W`` in {0, 1}. Known pixels win over the hole.
    """
    size = size_of(hole)
    # A low-res pixel that the hole touches at all is mixed with what must go: it counts as hole. So does one under
    # known pixels that were painted into the hole.
    low_hole = lay_on_grid(fold_time(hole), size_of(lowres))  # (b t) 1 h w
    known = torch.zeros_like(hole) if known is None else known
    hole = hole * (1 - known)
    low_filled = continue_edges(fold_time(lowres), 1 - low_hole)  # (b t) 3 h w
    low_filled = unfold_time(low_filled, lowres.shape[1])  # b t 3 h w
    guess = resize(low_filled, size)  # b t 3 H W
    if known_pixels is not None:
        guess = torch.where(known.bool(), known_pixels, guess)
    return Evidence(guess=guess, hole=hole, known=known, lowres=low_filled)


def lay_on_grid(hole: Tensor, size: tuple[int, int]) -> Tensor:
    """The hole ``t 1 H W`` on the low-res grid: ``t 1 h w``, 1 where it touches a low-res pixel at all."""
    return F.adaptive_max_pool2d(hole, size)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resize of pixels ``... c . .`` to ``size`` (height, width), clipped to [-1, 1]."""
    if size_of(x) == tuple(size):
        return x
    # In float32: on a CPU there is no antialiased kernel for half precision.
    frames = x.reshape(-1, *x.shape[-3:])  # n c . .
    y = F.interpolate(frames.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return y.reshape(*x.shape[:-2], *size).clamp(-1, 1).to(x.dtype)


@dataclass(frozen=True)
class EvidenceLayout:
    """How evidence is laid on the latent grid, one cell for ``factor`` x ``factor`` output pixels.

    ``pixels``: RGB at the grid's resolution, mid-grey in the hole, then the hole: 4 channels (5 with ``known``).
    The layout of the SD x4-upscaler, exact when the low-res frames lie on the grid already.
    ``space_to_depth``: every output pixel's guess, hole (and known) as channels: ``factor**2 * 4`` (or 5). Loses
    nothing at any scale.
    """

    kind: str = "space_to_depth"
    factor: int = 8
    with_known: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("pixels", "space_to_depth"):
            raise ValueError(f"unknown evidence layout {self.kind!r}; use 'pixels' or 'space_to_depth'")

    @property
    def channels(self) -> int:
        per_pixel = 5 if self.with_known else 4
        return per_pixel if self.kind == "pixels" else per_pixel * self.factor**2

    def __call__(self, evidence: Evidence) -> Tensor:
        """Evidence of size H x W -> ``b t channels H/factor W/factor``. H and W must be multiples of ``factor``."""
        height, width = evidence.size
        if height % self.factor or width % self.factor:
            raise ValueError(f"{height}x{width} is no multiple of the latent factor {self.factor}; pad it first")
        masks = [evidence.hole, evidence.known] if self.with_known else [evidence.hole]
        if self.kind == "space_to_depth":
            # b t c (h f) (w f) -> b t (c f f) h w
            return F.pixel_unshuffle(torch.cat([evidence.guess, *masks], dim=2), self.factor)
        grid = (height // self.factor, width // self.factor)
        hole = _pool(evidence.hole, grid, F.adaptive_max_pool2d)
        rgb = _show_on_grid(evidence, grid)
        # b t 3 h w, b t 1 h w, (b t 1 h w) -> b t 4|5 h w
        return torch.cat([rgb * (1 - hole), hole, *(_pool(m, grid, _min_pool) for m in masks[1:])], dim=2)


def _show_on_grid(evidence: Evidence, grid: tuple[int, int]) -> Tensor:
    """What a coarser grid shows of the evidence, ``b t 3 h w``: the low-res frames, and cells that are known whole."""
    rgb = resize(evidence.lowres, grid)
    if not bool(evidence.known.any()):
        return rgb
    return torch.where(_pool(evidence.known, grid, _min_pool).bool(), resize(evidence.guess, grid), rgb)


def pad_evidence(evidence: Evidence, multiple: int) -> Evidence:
    """Pad bottom and right by repeating the edge until both sides are multiples of ``multiple``.

    Both grids go on to show the same: where the padding is no whole number of low-res pixels, these are laid anew on
    as many as are nearest to it.
    """
    height, width = evidence.size
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return evidence
    low_height, low_width = evidence.lowres.shape[-2:]
    shown = (height + bottom) * low_height / height, (width + right) * low_width / width  # in low-res pixels
    return Evidence(
        guess=_pad(evidence.guess, bottom, right),
        hole=_pad(evidence.hole, bottom, right),
        known=_pad(evidence.known, bottom, right),
        lowres=_laid_anew(evidence.lowres, shown),
    )


def _laid_anew(lowres: Tensor, shown: tuple[float, float]) -> Tensor:
    """``b t 3 h w``, its edge repeated to ``shown`` (down, across) of its pixels, on a grid of about as many."""
    padded = _pad(lowres, *(math.ceil(n) - side for n, side in zip(shown, lowres.shape[-2:], strict=True)))
    if all(n == int(n) for n in shown):
        return padded
    size = (round(shown[0]), round(shown[1]))
    middles = (
        (torch.arange(n, device=lowres.device) + 0.5) / n * (2 * extent / side) - 1  # -1 to 1 are padded's borders
        for n, extent, side in zip(size, shown, padded.shape[-2:], strict=True)
    )
    points = torch.stack(torch.meshgrid(*middles, indexing="ij")[::-1], dim=-1)  # h' w' 2, x and y
    frames = fold_time(padded).float()  # (b t) 3 h w
    laid = F.grid_sample(
        frames, points.expand(len(frames), -1, -1, -1), mode="bicubic", padding_mode="border", align_corners=False
    )
    return unfold_time(laid, lowres.shape[1]).clamp(-1, 1).to(lowres)


def _pad(x: Tensor, bottom: int, right: int) -> Tensor:
    return unfold_time(F.pad(fold_time(x), (0, right, 0, bottom), mode="replicate"), x.shape[1])


def _pool(x: Tensor, grid: tuple[int, int], pool: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
    return unfold_time(pool(fold_time(x), grid), x.shape[1])


def _min_pool(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return 1 - F.adaptive_max_pool2d(1 - x, grid)
