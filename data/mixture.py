"""Several training sets as one: other scales, other degradations, other folders, each with its share of the clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset

from data.clips import Item
from ldm_video.core.errors import UserError


class Mixture(Dataset[Item]):
    """Takes each item from one of several endless datasets; a pure function of (``seed``, index), as they are.

    Args:
        parts: name -> dataset. All give clips of the same length and high-res size.
        shares: name -> weight of that part; they need not sum to one.
        group: neighbouring items that are drawn together from one part. Clips of two scales cannot stand in one
            batch: where the parts' scales differ, this is the batch's size times the number of processes.
        seed: of the draw.
        length: items that one pass takes where nobody says otherwise.

    Raises ``UserError`` for shares that do not name the parts or cannot be drawn from.
    """

    def __init__(
        self,
        parts: Mapping[str, Dataset[Item]],
        shares: Mapping[str, float],
        group: int = 1,
        seed: int = 0,
        length: int = 1000,
    ) -> None:
        if set(parts) != set(shares):
            raise UserError(f"the mixture's shares name {sorted(shares)}, its parts are {sorted(parts)}; name the same")
        weights = np.array([float(shares[name]) for name in parts])
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise UserError(f"the mixture's shares {dict(shares)} must be 0 or more, and not all 0")
        if group < 1:
            raise UserError(f"the mixture's group {group} must be 1 or more")
        self.parts: Sequence[Dataset[Item]] = list(parts.values())
        self.shares = weights / weights.sum()
        self.group, self.seed, self.length = group, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        if index < 0:
            raise IndexError(index)
        part = np.random.default_rng([self.seed, index // self.group]).choice(len(self.parts), p=self.shares)
        return self.parts[part][index]
