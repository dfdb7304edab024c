"""Evidence: everything known about the high-resolution clip, on one canvas at output size.

Low-res frames are soft evidence outside the hole, known high-res pixels are hard evidence, and the hole has none.
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
    """What is known about a clip of size H x W. All tensors except ``lowres`` are ``b t . H W``.

    Attributes:
        guess: ``b t 3 H W`` in [-1, 1]. The canvas with the hole filled from its rim, continuing the edges that the rim
            cuts off. An initial guess, not evidence.
        hole: ``b t 1 H W`` in {0, 1}. 1 = nothing is known here.
        known: ``b t 1 H W`` in {0, 1}. 1 = ``guess`` holds the exact high-res pixel. Disjoint from ``hole``.
        lowres: ``b t 3 h w`` in [-1, 1]. The low-res frames at their own size, with their hole filled the same way.
    """

    guess: Tensor
    hole: Tensor
    known: Tensor
    lowres: Tensor

    @property
    def canvas(self) -> Tensor:
        """``b t 3 H W``: the evidence alone, mid-grey (0) in the hole, as in Stable Diffusion inpainting."""
        return self.guess * (1 - self.hole)

    @property
    def size(self) -> tuple[int, int]:
        return size_of(self.guess)

    def map(self, function: Callable[[Tensor], Tensor]) -> Evidence:
        """Apply ``function`` to every tensor, for example to move it to a device or to select frames."""
        return Evidence(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def crop(self, frames: slice, rows: slice, columns: slice) -> Evidence:
        """Return the part of the evidence at ``[frames, rows, columns]`` of the output grid.

        The low-res frames are cropped if the crop lies on whole low-res pixels; otherwise they are resized from the
        cropped guess.
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
    """Combine low-res frames, a hole and known high-res pixels on one canvas.

    Args:
        lowres: ``b t 3 h w`` in [-1, 1].
        hole: ``b t 1 H W`` in {0, 1}, at output size, which it determines.
        known_pixels: ``b t 3 H W`` in [-1, 1], read where ``known`` is 1.
        known: ``b t 1 H W`` in {0, 1}. Known pixels take precedence over the hole.
    """
    size = size_of(hole)
    # A low-res pixel that the hole touches at all contains some of what is to be removed, so it counts as hole. So do
    # low-res pixels below known pixels painted into the hole.
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
    """Max-pool the hole ``t 1 H W`` to the low-res grid: ``t 1 h w``, 1 where it touches a low-res pixel at all."""
    return F.adaptive_max_pool2d(hole, size)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resize of pixels ``... c . .`` to ``size`` (height, width), clipped to [-1, 1]."""
    if size_of(x) == tuple(size):
        return x
    # In float32: the CPU has no antialiased kernel for half precision.
    frames = x.reshape(-1, *x.shape[-3:])  # n c . .
    y = F.interpolate(frames.float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return y.reshape(*x.shape[:-2], *size).clamp(-1, 1).to(x.dtype)


@dataclass(frozen=True)
class EvidenceLayout:
    """How evidence is laid out on the latent grid, with one cell per ``factor`` x ``factor`` output pixels.

    ``pixels``: RGB at grid resolution (mid-grey in the hole), then the hole: 4 channels (5 with ``known``). The layout
    of the SD x4-upscaler; exact if the low-res frames are already at grid resolution.
    ``space_to_depth``: guess, hole (and known) of every output pixel as channels: ``factor**2 * 4`` (or 5). Lossless at
    any scale.

    Raises ``ValueError`` for any other ``kind``.
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
        """Evidence of size H x W -> ``b t channels H/factor W/factor``.

        Raises ``ValueError`` unless H and W are multiples of ``factor``.
        """
        height, width = evidence.size
        if height % self.factor or width % self.factor:
            raise ValueError(f"{height}x{width} is not a multiple of the latent factor {self.factor}; pad it first")
        masks = [evidence.hole, evidence.known] if self.with_known else [evidence.hole]
        if self.kind == "space_to_depth":
            # b t c (h f) (w f) -> b t (c f f) h w
            return F.pixel_unshuffle(torch.cat([evidence.guess, *masks], dim=2), self.factor)
        grid = (height // self.factor, width // self.factor)
        hole = _pool(evidence.hole, grid, F.adaptive_max_pool2d)
        rgb = _rgb_on_grid(evidence, grid)
        # b t 3 h w, b t 1 h w, (b t 1 h w) -> b t 4|5 h w
        return torch.cat([rgb * (1 - hole), hole, *(_pool(m, grid, _min_pool) for m in masks[1:])], dim=2)


def _rgb_on_grid(evidence: Evidence, grid: tuple[int, int]) -> Tensor:
    """The evidence on a coarser grid, ``b t 3 h w``: the guess where a cell is fully known, else the low-res frames."""
    rgb = resize(evidence.lowres, grid)
    if not bool(evidence.known.any()):
        return rgb
    return torch.where(_pool(evidence.known, grid, _min_pool).bool(), resize(evidence.guess, grid), rgb)


def pad_evidence(evidence: Evidence, multiple: int) -> Evidence:
    """Replicate-pad bottom and right until both sides are multiples of ``multiple``.

    Both grids stay aligned: where the padding is not a whole number of low-res pixels, the low-res frames are resampled
    to the nearest whole number of them.
    """
    height, width = evidence.size
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return evidence
    low_height, low_width = evidence.lowres.shape[-2:]
    padded_size = (height + bottom) * low_height / height, (width + right) * low_width / width  # in low-res pixels
    return Evidence(
        guess=_pad(evidence.guess, bottom, right),
        hole=_pad(evidence.hole, bottom, right),
        known=_pad(evidence.known, bottom, right),
        lowres=_pad_and_resample(evidence.lowres, padded_size),
    )


def _pad_and_resample(lowres: Tensor, padded_size: tuple[float, float]) -> Tensor:
    """Replicate-pad ``b t 3 h w`` to ``padded_size`` (down, across; in its pixels), rounded by resampling."""
    padded = _pad(lowres, *(math.ceil(n) - side for n, side in zip(padded_size, lowres.shape[-2:], strict=True)))
    if all(n == int(n) for n in padded_size):
        return padded
    size = (round(padded_size[0]), round(padded_size[1]))
    centres = (
        (torch.arange(n, device=lowres.device) + 0.5) / n * (2 * extent / side) - 1  # -1 to 1 spans `padded`
        for n, extent, side in zip(size, padded_size, padded.shape[-2:], strict=True)
    )
    points = torch.stack(torch.meshgrid(*centres, indexing="ij")[::-1], dim=-1)  # h' w' 2, x and y
    frames = fold_time(padded).float()  # (b t) 3 h w
    resampled = F.grid_sample(
        frames, points.expand(len(frames), -1, -1, -1), mode="bicubic", padding_mode="border", align_corners=False
    )
    return unfold_time(resampled, lowres.shape[1]).clamp(-1, 1).to(lowres)


def _pad(x: Tensor, bottom: int, right: int) -> Tensor:
    return unfold_time(F.pad(fold_time(x), (0, right, 0, bottom), mode="replicate"), x.shape[1])


def _pool(x: Tensor, grid: tuple[int, int], pool: Callable[[Tensor, tuple[int, int]], Tensor]) -> Tensor:
    return unfold_time(pool(fold_time(x), grid), x.shape[1])


def _min_pool(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return 1 - F.adaptive_max_pool2d(1 - x, grid)
