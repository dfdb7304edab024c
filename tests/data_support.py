"""What the tests of training data share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two items, drawn or collated, are the same: pixels bit for bit, name and caption."""
    tensors = all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in ("hr", "lr", "hole"))
    return tensors and a["name"] == b["name"] and a["caption"] == b["caption"]
