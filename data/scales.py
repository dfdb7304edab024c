"""Clips of several scales in one stream. A model trained at one scale over-sharpens at smaller ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from data.clips import ClipStream, Item
from ldm_video.core.checks import number, whole
from ldm_video.core.errors import UserError


class SeveralScales(Dataset[Item]):
    """A random mixture of datasets that differ in scale; like theirs, items are a pure function of (``seed``, index).

    The low-res frames of a batch must have the same size, so ``together`` consecutive items share a scale. The training
    loop sets ``together`` to the number of clips per step, over all processes.

    Args:
        clips: builds the dataset of one scale: ``clips(scale=2.0)``.
        scales: high-res pixels per low-res pixel.
        weights: positive relative frequency of each scale; need not sum to 1.
        seed: seed of the draw, 0 or more.

    Raises ``UserError`` unless there is one positive weight per scale, and for values of the wrong type.
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
        # Independent of the items' own random stream, which is seeded with (seed, index).
        rng = np.random.default_rng([self.seed, index // self.together, len(self.sets)])
        return self.sets[rng.choice(len(self.sets), p=self.weights)][index]
