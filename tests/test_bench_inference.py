"""The sampling benchmark compares equal work that gives equal frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eval.bench.inference import (
    BASELINE,
    EQUAL,
    OURS,
    RUNS,
    Setting,
    difference,
    parse_arguments,
    table,
)
from ldm_video.core.errors import UserError

SETTING = Setting(width="quarter", frames=2, size=8, steps=2, device="cpu", dtype="fp32", compile=False)


@torch.no_grad()
def test_all_give_the_same_frames() -> None:
    """New temporal layers change nothing either, so one more frame and one more step are seen to matter."""
    theirs = RUNS[BASELINE](SETTING)()
    assert theirs.shape == (2, 3, 32, 32) and theirs.std() > 0.05
    for name in (EQUAL, OURS):
        assert difference(RUNS[name](SETTING)(), theirs, torch.float32) < 1e-4
    other = RUNS[EQUAL](replace(SETTING, steps=3))()
    with pytest.raises(UserError, match="says nothing"):
        difference(other, theirs, torch.float32)


def test_frames_that_are_not_a_number_are_refused() -> None:
    with pytest.raises(UserError, match="nan"):
        difference(torch.full((1, 3, 2, 2), torch.nan), torch.zeros(1, 3, 2, 2), torch.bfloat16)


def test_arguments() -> None:
    setting, rounds, memory = parse_arguments(["--device", "cpu", "--frames", "3", "--rounds", "2", "--no-memory"])
    assert setting == Setting("quarter", 3, 64, 2, "cpu", "fp32", False)
    assert (rounds, memory) == (2, False)
    on_gpu, _, memory = parse_arguments(["--device", "cuda:0", "--compile"])
    assert (on_gpu.width, on_gpu.dtype, on_gpu.compile, memory) == ("full", "bf16", True, True)
    assert parse_arguments(["--device", "cuda", "--width", "quarter", "--dtype", "fp16"])[0].dtype == "fp16"


@pytest.mark.parametrize("option", [("--size", "60"), ("--frames", "0"), ("--rounds", "-1"), ("--width", "half")])
def test_bad_arguments(option: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=option[0]):
        parse_arguments(option)


def test_figures() -> None:
    """Ratios are taken round by round: the second round was slow for all."""
    times = {BASELINE: [4.0, 40.0, 4.0], EQUAL: [2.0, 20.0, 4.0], OURS: [3.0, 24.0, 5.0]}
    lines = table(SETTING, times, {BASELINE: 2**30, EQUAL: 3 * 2**29}).splitlines()
    assert lines[2] == "| diffusers | 2.000 | 2.000-20.000 | 1.00 | 1.00 |"
    assert lines[3] == "| ours, no temporal layers | 2.000 | 1.000-10.000 | 2.00 | 1.50 |"
    assert lines[4] == "| ours | 2.500 | 1.500-12.000 | 1.33 | - |"
    assert lines[-1].startswith("Temporal layers cost 25%.")
