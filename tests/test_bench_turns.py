"""Variants that take turns."""

from __future__ import annotations

import torch

from eval.bench.turns import alternate, ratio


def test_every_run_has_a_turn_in_every_round() -> None:
    turns: list[str] = []

    def run(name: str) -> torch.Tensor:
        turns.append(name)
        return torch.zeros(())

    times = alternate({name: (lambda name=name: run(name)) for name in "abc"}, "cpu", rounds=3)
    assert "".join(turns) == "abcbcacab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_rounds_of_the_warm_up_are_not_counted() -> None:
    turns: list[str] = []
    times = alternate({name: (lambda name=name: turns.append(name)) for name in "ab"}, "cpu", rounds=2, warmup=1)
    assert "".join(turns) == "abbaab"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_the_ratio_is_taken_round_by_round() -> None:
    assert ratio([2.0, 30.0, 2.0], [1.0, 10.0, 2.0]) == 2.0
