"""Slow fixtures that are only read: made once per process, for several test files."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def once(make: Callable[P, T]) -> Callable[P, T]:
    """Return the first call's result in every call: its arguments belong to the session, and so are always the same.

    ``functools.cache`` would need to hash them, which pytest's factory of temporary folders does not allow.
    """
    made: list[T] = []

    @wraps(make)
    def given(*args: P.args, **kwargs: P.kwargs) -> T:
        if not made:
            made.append(make(*args, **kwargs))
        return made[0]

    return given
