"""What is slow to make and only read: made once in a process, for the fixtures of several files."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def once(make: Callable[P, T]) -> Callable[P, T]:
    """What the first call gave, in every call: its arguments are of the whole session, and so always the same."""
    made: list[T] = []

    @wraps(make)
    def given(*args: P.args, **kwargs: P.kwargs) -> T:
        if not made:
            made.append(make(*args, **kwargs))
        return made[0]

    return given
