"""Clips of several scales in one stream: a model that has seen only one enlargement over-sharpens at a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from data.clips import ClipStream, Item
from ldm_video.core.checks import number, whole
from ldm_video.core.errors import UserError


class SeveralScales(Dataset[Item]):
    """Items of one of several data sets that differ in scale, a pure function of (``seed``, index) as theirs are.

    Low-res frames of one batch must be of one size, so ``together`` items in a row have one scale: who makes steps of
    the items sets it to the clips of a step, those of all processes.

    Args:
        clips: makes the data set of one scale: ``clips(scale=2.0)``.
        scales: high-res pixels for one low-res pixel.
        weights: how often each scale is drawn, of any sum.
        seed: of the draw.

    Raises ``UserError`` for scales and weights that do not fit and for values of the wrong type.
    """

    def __init__(
        self,
        clips: Callable[..., ClipStream],
        scales: Sequence[float],
        weights: Sequence[float],
        seed: int = 0,
    ) -> None:
        given: tuple[tuple[str, object], ...] = (("scales", scales), ("weights", weights))
        for name, values in given:
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise UserError(f"{name} is {values!r}; give a list of numbers")
        shares = [number("a weight of a scale", weight, 0, float("inf")) for weight in weights]
        if len(scales) != len(weights) or min(shares, default=0) <= 0:
            raise UserError(f"scales {list(scales)} with weights {list(weights)}: give each scale a positive weight")
        self.together, self.seed = 1, whole("seed", seed, 0)
        self.sets = [clips(scale=scale) for scale in scales]
        self.weights = np.array(shares, dtype=np.float64) / sum(shares)

    def __len__(self) -> int:
        return len(self.sets[0])

    def __getitem__(self, index: int) -> Item:
        # Another stream than the items' own, which are drawn from (seed, index).
        rng = np.random.default_rng([self.seed, index // self.together, len(self.sets)])
        return self.sets[rng.choice(len(self.sets), p=self.weights)][index]
