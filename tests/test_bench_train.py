"""The training benchmark compares equal work, and both sides learn."""

from __future__ import annotations

import pytest
import torch

from eval.bench import train_throughput
from eval.bench.train_throughput import BASELINE, EQUAL, OURS, STEPS, Setting, as_turn, flops_of, table
from ldm_video.core.errors import UserError

SETTING = Setting(width="quarter", batch=1, frames=2, size=32, device="cpu", bf16=False, compile=False)


def test_without_temporal_layers_the_work_is_the_same() -> None:
    plain, equal, ours = (flops_of(name, SETTING) for name in (BASELINE, EQUAL, OURS))
    assert plain > 1e9
    assert 1 <= equal / plain < 1.02  # one more input channel: the hole
    assert ours > 1.05 * equal


def test_every_variant_takes_steps() -> None:
    for make in STEPS.values():
        step = make(SETTING)
        assert step(0) != step(1)


def test_a_turn_is_the_next_step() -> None:
    taken: list[int] = []
    turn = as_turn(lambda index: (taken.append(index), torch.tensor(float("inf") if index == 2 else 1.0))[1])
    turn()
    turn()
    with pytest.raises(UserError, match="says nothing"):
        turn()
    assert taken == [0, 1, 2]


def test_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are taken round by round: the second round was slow for all."""
    monkeypatch.setattr(train_throughput, "flops_of", lambda name, setting: 5e9)
    times = {BASELINE: [4.0, 40.0, 4.0], EQUAL: [2.0, 20.0, 4.0], OURS: [3.0, 24.0, 5.0]}
    lines = table(SETTING, times, memory=False).splitlines()
    assert lines[0].startswith("| step | s / step | spread | clips / s |") and lines[0].count("|") == 9
    assert lines[2] == "| diffusers | 4.000 | 4.000-40.000 | 0.25 | 1.00 | 0.005 | - | - |"
    assert lines[4] == "| ours | 5.000 | 3.000-24.000 | 0.20 | 0.75 | 0.005 | - | - |"
    assert lines[-1].startswith("Temporal layers cost 25% of a step.")
