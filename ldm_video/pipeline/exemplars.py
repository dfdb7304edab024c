"""Fill a hole in one frame with patches from the rest of it.

Patch-based completion as an optimisation (Wexler, Shechtman & Irani 2007): every patch that touches the hole finds the
most similar patch outside, and every pixel of the hole becomes the mean of what the patches that cover it found, from
coarse to fine. On coarse grids all patches are compared; on finer ones a patch tries its neighbours' matches beside its
own match on the coarser grid (Barnes et al. 2009, PatchMatch, with all pixels at once and no random search).

Unguided, the search converges to anything self-consistent, wherever in the frame it lies. So similarity also includes
the colour that the hole's rim has there when it is continued with its edges. A hole is thus filled with its
surroundings, as expected of object removal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_video.core.push_pull import push_pull
from ldm_video.core.total_variation import continue_edges

_PATCH = 7  # pixels to a side
_RADIUS = _PATCH // 2
_GUIDE_WEIGHT = 0.5  # weight of a difference of smooth colour, relative to that of the patches' mean
_SMOOTH_SIDE = 9  # side of the box filter that smooths the guide colours; applied twice
_CORRECTED = 0.5  # fraction of the smooth colours' offset from the continued rim that is removed: no sharp outlines
_MIN_SIDE = 3 * _PATCH  # minimum short side of a grid
_EXHAUSTIVE_PAIRS = 2**24  # number of patch pairs up to which the search is exhaustive
_ROUNDS = (8, 4)  # of search and averaging: on the coarsest grid, on each finer one
_REDRAW_ROUNDS = 2  # rounds on every grid when an existing fill is redrawn
_BATCH = 2**14  # patches held in memory
_PROPAGATIONS = 2  # times that matches spread to neighbours per round
_STEPS = tuple((dy, dx) for step in (1, 3) for dy, dx in ((0, step), (0, -step), (step, 0), (-step, 0)))
_OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
_TYPICAL_QUANTILE = 0.75  # quantile of the distances at which a patch's weight has fallen to exp(-1/2)


def complete(frame: Tensor, hole: Tensor, start: Tensor | None = None) -> Tensor:
    """Fill the hole of one frame with its surroundings.

    Args:
        frame: ``3 h w`` in [-1, 1].
        hole: ``1 h w`` in {0, 1}.
        start: ``3 h w`` in [-1, 1], with an existing fill of the hole, which is redrawn from patches of the frame.

    Returns ``3 h w``: ``frame`` outside the hole. If hardly a whole patch lies outside the hole, the fill is smooth.
    """
    picture, mask = frame.float().cpu()[None], hole.float().cpu()[None]  # 1 3 h w, 1 1 h w
    if not bool(mask.any()):
        return frame
    initial = continue_edges(picture, 1 - mask) if start is None else start.to(picture)
    smooth = torch.where(mask.bool(), initial, picture)
    previous: _Grid | None = None
    for size in _grid_sizes(mask[0, 0]):
        grid = _make_grid(smooth, mask, size)
        if len(grid.sources) < _PATCH**2:
            continue
        if previous is not None:
            grid.start_from_matches(previous)
            if start is None:
                grid.start_from_fill(previous)
        for _ in range(_ROUNDS[previous is not None] if start is None else _REDRAW_ROUNDS):
            grid.search()
            grid.average()
        previous = grid
    if previous is None:
        filled = smooth
    else:
        filled = previous.without_seam()
        filled = filled + _CORRECTED * _smoothed(smooth - filled)
    return torch.where(hole.bool(), filled[0].to(frame).clamp(-1, 1), frame)


def _grid_sizes(hole: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the (height, width) of grids, coarse to fine, up to the frame's own.

    On the coarsest one, the hole ``h w`` is about a patch wide and few pairs of patches have to be compared.
    """
    height, width = hole.shape
    inside = cv2.distanceTransform(np.pad(hole.byte().numpy(), 1), cv2.DIST_L2, cv2.DIST_MASK_5)
    wide, pairs, halvings = 2 * float(inside.max()), float(hole.sum()) * hole.numel(), 0
    while min(height, width) >= 2 ** (halvings + 1) * _MIN_SIDE and (
        wide > 2**halvings * _PATCH or pairs > 16**halvings * _EXHAUSTIVE_PAIRS
    ):
        halvings += 1
    for level in range(halvings, -1, -1):
        yield max(1, round(height / 2**level)), max(1, round(width / 2**level))


@dataclass
class _Grid:
    """A hole on one grid, and the matches found for it. Positions are (row, column); a patch's is its centre.

    Attributes:
        picture: ``h w 3``.
        hole: ``h w`` bool.
        guide: ``h w 3``, smooth colours, scaled so that their distance adds to that of the patches.
        whole: ``h w`` bool, patches that lie in the frame and do not touch the hole.
        sources: ``m 2``, positions of those; targets: ``n 2``, positions of the patches that touch the hole.
        found: ``n 2``, a source for each target; distance: ``n``, mean squared distance to it, infinity for none.
        first: whether there are no matches from a coarser grid.
    """

    picture: Tensor
    hole: Tensor
    guide: Tensor
    whole: Tensor
    sources: Tensor
    targets: Tensor
    found: Tensor
    distance: Tensor
    first: bool = True

    def search(self) -> None:
        """Find the nearest source of each target."""
        padded = F.pad(self.picture.permute(2, 0, 1)[None], (_RADIUS,) * 4, mode="replicate")[0]  # 3 h+6 w+6
        windows = padded.unfold(1, _PATCH, 1).unfold(2, _PATCH, 1).permute(1, 2, 0, 3, 4)  # h w 3 7 7, a view
        if self.first or len(self.targets) * len(self.sources) <= _EXHAUSTIVE_PAIRS:
            self._compare_all(windows)
        else:
            self._propagate_matches(windows)

    def _compare_all(self, windows: Tensor) -> None:
        """Compare every target with every source."""
        given = self._patches(windows, self.sources)  # m d
        norms = given.square().sum(1)
        for part in torch.arange(len(self.targets)).split(max(1, _EXHAUSTIVE_PAIRS // len(given))):
            wanted = self._patches(windows, self.targets[part])
            nearest = (norms - 2 * wanted @ given.T).argmin(1)
            self.found[part] = self.sources[nearest]
            self.distance[part] = (wanted - given[nearest]).square().mean(1)

    def _propagate_matches(self, windows: Tensor) -> None:
        """Try each target's current match, its neighbours' matches, and positions next to its match."""
        number = torch.full(self.hole.shape, -1)  # h w, index of the target there
        number[tuple(self.targets.T)] = torch.arange(len(self.targets))
        for part in torch.arange(len(self.targets)).split(_BATCH):
            targets = self.targets[part]
            wanted = self._patches(windows, targets)
            self.distance[part] = torch.inf  # the picture has changed
            self._accept_nearer(windows, part, wanted, self.found[part])
            for _ in range(_PROPAGATIONS):
                for step in _STEPS:
                    neighbour = number[tuple(self._inside(targets + torch.tensor(step)).T)]
                    proposed = self.found[neighbour] - torch.tensor(step)
                    self._accept_nearer(
                        windows, part, wanted, torch.where(neighbour[:, None] < 0, self.found[part], proposed)
                    )
                for nudge in _OFFSETS:
                    self._accept_nearer(windows, part, wanted, self.found[part] + torch.tensor(nudge))

    def average(self) -> None:
        """Set every pixel of the hole to the weighted mean of what the patches that cover it found."""
        made, mass = self._means()
        inside = self.hole[tuple(self.targets.T)] & (mass > 0)
        self.picture = self.picture.clone()  # leave the picture it was built from unchanged
        self.picture[tuple(self.targets[inside].T)] = made[inside]

    def without_seam(self) -> Tensor:
        """Return the picture ``1 3 h w``, its hole corrected by the error of its rim, made in the same way: no seam."""
        made, mass = self._means()
        rim = ~self.hole[tuple(self.targets.T)] & (mass > 0)
        at = tuple(self.targets[rim].T)
        step, seen = torch.zeros_like(self.picture), torch.zeros(1, 1, *self.hole.shape)
        step[at], seen[0, 0][at] = self.picture[at] - made[rim], 1
        picture, step = (x.permute(2, 0, 1)[None] for x in (self.picture, step))
        return picture + push_pull(step, seen) * self.hole

    def _means(self) -> tuple[Tensor, Tensor]:
        """Return, at every target, the mean ``n 3`` of what the patches that cover it found, and their weight ``n``."""
        total, mass = torch.zeros(len(self.targets), 3), torch.zeros(len(self.targets))
        has = self.distance.isfinite()
        if not bool(has.any()):
            return total, mass
        offset = torch.zeros(*self.hole.shape, 2, dtype=torch.long)
        weight = torch.zeros(self.hole.shape)
        typical = self.distance[has].quantile(_TYPICAL_QUANTILE)
        offset[tuple(self.targets.T)] = self.found - self.targets
        weight[tuple(self.targets.T)] = torch.exp(-self.distance / (2 * typical + 1e-8))
        for step in torch.cartesian_prod(*[torch.arange(-_RADIUS, _RADIUS + 1)] * 2):
            middle = self._inside(self.targets + step)
            vote = weight[tuple(middle.T)] * (middle == self.targets + step).all(-1)  # n
            source = self._inside(self.targets + offset[tuple(middle.T)])
            total += vote[:, None] * self.picture[tuple(source.T)]
            mass += vote
        return total / mass.clamp(min=1e-12)[:, None], mass

    def start_from_fill(self, coarse: _Grid) -> None:
        """Initialise the hole with the fill from a coarser grid."""
        made = coarse.picture.permute(2, 0, 1)[None]
        larger = F.interpolate(made, size=self.hole.shape, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
        self.picture = torch.where(self.hole[..., None], larger, self.picture)

    def start_from_matches(self, coarse: _Grid) -> None:
        """Initialise the search with the matches from a coarser grid."""
        size, old = self.hole.shape, coarse.hole.shape
        there = torch.cartesian_prod(*(torch.arange(side) for side in old)).view(*old, 2)  # outside: itself
        there[tuple(coarse.targets.T)] = coarse.found
        scale = torch.tensor([new / side for new, side in zip(size, old, strict=True)])
        before = ((self.targets + 0.5) / scale).long().clamp(max=torch.tensor(old) - 1)  # n 2
        moved = (there[tuple(before.T)] - before) * scale
        self.found, self.first = self._inside(self.targets + moved.round().long()), False

    def _accept_nearer(self, windows: Tensor, part: Tensor, wanted: Tensor, source: Tensor) -> None:
        """Accept ``source`` ``k 2`` where it is whole and nearer than the match of the targets ``part`` ``k``."""
        source = self._inside(source)
        whole = self.whole[tuple(source.T)]
        part, source = part[whole], source[whole]
        distance = (wanted[whole] - self._patches(windows, source)).square().mean(1)
        nearer = distance < self.distance[part]
        self.found[part[nearer]], self.distance[part[nearer]] = source[nearer], distance[nearer]

    def _patches(self, windows: Tensor, at: Tensor) -> Tensor:
        """``n 2 -> n d``: the patches there, followed by their guide colours."""
        rows, columns = at.unbind(-1)
        return torch.cat([windows[rows, columns].flatten(1), self.guide[rows, columns]], dim=1)

    def _inside(self, at: Tensor) -> Tensor:
        height, width = self.hole.shape
        return at.clamp(min=0).minimum(torch.tensor((height - 1, width - 1)))


def _make_grid(smooth: Tensor, mask: Tensor, size: tuple[int, int]) -> _Grid:
    """Put the frame ``1 3 h w``, smooth in its hole ``1 1 h w``, on a grid of ``size``."""
    same = smooth.shape[-2:] == torch.Size(size)
    picture = smooth if same else F.interpolate(smooth, size=size, mode="bicubic", antialias=True)
    hole = F.adaptive_max_pool2d(mask, size)  # 1 1 h w
    touched = F.max_pool2d(hole, _PATCH, stride=1, padding=_RADIUS)[0, 0] > 0.5
    whole = torch.zeros_like(touched)
    whole[_RADIUS : size[0] - _RADIUS, _RADIUS : size[1] - _RADIUS] = True
    whole &= ~touched
    targets = touched.nonzero()
    return _Grid(
        picture=picture[0].permute(1, 2, 0).contiguous(),
        hole=hole[0, 0] > 0.5,
        guide=_GUIDE_WEIGHT * _PATCH * _smoothed(picture)[0].permute(1, 2, 0),
        whole=whole,
        sources=whole.nonzero(),
        targets=targets,
        found=targets.clone(),
        distance=torch.full((len(targets),), torch.inf),
    )


def _smoothed(picture: Tensor) -> Tensor:
    """``1 c h w -> 1 c h w``, low-pass filtered by two box filters in succession."""
    padded = F.pad(picture, (_SMOOTH_SIDE - 1,) * 4, mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, _SMOOTH_SIDE, stride=1), _SMOOTH_SIDE, stride=1)
