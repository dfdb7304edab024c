"""Validate options when an object is built, not in the first batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ldm_video.core.errors import UserError


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return ``value`` as an int. Raises ``UserError`` unless it is a whole number in [``least``, ``most``]."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise UserError(f"{name} is {value!r}; give a whole number, {_limits(least, most)}")
    return int(value)


def number(name: str, value: Any, least: float, most: float) -> float:
    """Return ``value`` as a float. Raises ``UserError`` unless it is a finite number in [``least``, ``most``]."""
    plain = float("nan") if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not least <= plain <= most or math.isinf(plain):
        raise UserError(f"{name} is {value!r}; give a finite number, {_limits(least, most)}")
    return plain


def sides(name: str, value: Any) -> tuple[int, int]:
    """Expand one side, or two, to ``(height, width)``. Raises ``UserError`` unless they are whole numbers >= 1."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return whole(name, value, 1), whole(name, value, 1)
    if len(value) != 2:
        raise UserError(f"{name} is {list(value)}; give one side or [height, width]")
    return whole(name, value[0], 1), whole(name, value[1], 1)


def places(name: str, value: Any) -> list[str | Path]:
    """Return one or several paths, patterns or URLs as a list. Raises ``UserError`` for anything else or none."""
    several = [value] if isinstance(value, str | Path) else value
    if not isinstance(several, Sequence) or not several or not all(isinstance(one, str | Path) for one in several):
        raise UserError(f"{name} is {value!r}; give a path or a list of paths")
    return list(several)


def _limits(least: float, most: float) -> str:
    return f"{least} or more" if math.isinf(most) else f"from {least} to {most}"
