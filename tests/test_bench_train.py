"""The training benchmark compares equal work, and both sides learn."""

from __future__ import annotations

from eval.bench.train_throughput import BASELINE, EQUAL, OURS, STEPS, Setting, flops_of, ratio

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


def test_the_ratio_is_taken_round_by_round() -> None:
    assert ratio([2.0, 30.0, 2.0], [1.0, 10.0, 2.0]) == 2.0
