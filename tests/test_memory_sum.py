"""The expected peak of ``--memory``, step by step: what each costs, and of how many pixels."""

from __future__ import annotations

import pytest

from ldm_video.pipeline.memory_costs import Costs
from ldm_video.pipeline.memory_plan import expected_peak
from tests.test_memory_plan import FULL_HD

FRAME, TILE, SEGMENT = 1088 * 1920, 512 * 512, 13
HELD = 10**9 + FULL_HD.fixed + SEGMENT * FULL_HD.per_frame


@pytest.mark.parametrize(
    ("step", "pixels"),
    [("sample", 12 * TILE), ("decode", 12 * TILE), ("finish", TILE), ("encode", SEGMENT * FRAME)],
)
def test_the_dearest_step_is_what_the_work_takes(step: str, pixels: int) -> None:
    costs = Costs(**{"base": 10**9, "sample": 1.0, "decode": 1.0, "finish": 1.0} | {step: 10_000.0})
    assert expected_peak(costs, FULL_HD, SEGMENT, (512, 512)) == pytest.approx(HELD + 10_000 * pixels)


@pytest.mark.parametrize(
    ("step", "pixels"), [("sample", 12 * TILE), ("decode", 2**20), ("finish", TILE), ("encode", FRAME)]
)
def test_a_codec_is_given_no_more_than_it_takes_at_once(step: str, pixels: int) -> None:
    """But a whole frame, or a whole tile, at least."""
    costs = Costs(**{"base": 10**9, "sample": 1.0, "decode": 1.0, "finish": 1.0, "at_once": 2**20} | {step: 10_000.0})
    assert expected_peak(costs, FULL_HD, SEGMENT, (512, 512)) == pytest.approx(HELD + 10_000 * pixels)
