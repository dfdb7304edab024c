"""Peak memory in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from eval.bench.peaks import peak_of
from ldm_video.core.errors import UserError


def prepare(size: int) -> Callable[[], object]:
    return partial(torch.ones, size, dtype=torch.uint8)


def fail() -> Callable[[], object]:
    raise SystemExit(3)


def test_the_work_is_what_is_counted() -> None:
    small, large = (peak_of(partial(prepare, size), "cpu", "it", "take less") for size in (10, 5 * 10**8))
    assert 4 * 10**8 < large - small < 6 * 10**8


def test_a_process_that_fails_is_one_line() -> None:
    with pytest.raises(UserError, match="'it' ended with code 3; take less"):
        peak_of(fail, "cpu", "it", "take less")
