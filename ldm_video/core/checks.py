"""Is an option what it should be? Said when an object is built, not in the first batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ldm_video.core.errors import UserError


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """``value`` as an int; ``UserError`` that names the option unless it is a whole number from ``least`` to
    ``most``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise UserError(f"{name} is {value!r}; give a whole number, {_limits(least, most)}")
    return int(value)


def number(name: str, value: Any, least: float, most: float) -> float:
    """``value`` as a float; ``UserError`` that names the option unless it is a finite number from ``least`` to
    ``most``."""
    plain = float("nan") if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not least <= plain <= most or math.isinf(plain):
        raise UserError(f"{name} is {value!r}; give a finite number, {_limits(least, most)}")
    return plain


def sides(name: str, value: Any) -> tuple[int, int]:
    """(height, width) of one side or of two; ``UserError`` unless they are whole numbers from 1 on."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return whole(name, value, 1), whole(name, value, 1)
    if len(value) != 2:
        raise UserError(f"{name} is {list(value)}; give one side or [height, width]")
    return whole(name, value[0], 1), whole(name, value[1], 1)


def places(name: str, value: Any) -> list[str | Path]:
    """One path, pattern or URL, or several, as a list; ``UserError`` for anything else and for none."""
    several = [value] if isinstance(value, str | Path) else value
    if not isinstance(several, Sequence) or not several or not all(isinstance(one, str | Path) for one in several):
        raise UserError(f"{name} is {value!r}; give a path or a list of paths")
    return list(several)


def _limits(least: float, most: float) -> str:
    return f"{least} or more" if math.isinf(most) else f"from {least} to {most}"
