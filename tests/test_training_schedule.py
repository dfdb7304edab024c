"""Learning rates: groups that begin late, runs that are made longer, and what groups are called."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ldm_video.training.schedule import Pace, warmup_cosine


def factors(paces: list[Pace], warmup: int, steps: int) -> list[list[float]]:
    """Of each group, the factor on its rate at the steps from 0 to ``steps``."""
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in paces], lr=1.0)
    schedule = warmup_cosine(optimizer, warmup, steps, paces=paces)["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps + 1):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return [list(group) for group in zip(*rates, strict=True)]


def test_a_late_group_has_a_cosine_of_its_own() -> None:
    """As the decoder in x4_few_step.yaml, at a tenth of the length: from step 1000 of 1200 on."""
    (late,) = factors([Pace(1000)], warmup=100, steps=1200)
    assert late[999] == 0.0
    assert late[1000] == pytest.approx(0.01)  # the first step of its warm-up
    assert late[1099] == late[1100] == 1.0  # warm, and at the full rate
    assert late[1150] == pytest.approx(0.02 + 0.98 / 2)  # half-way from there to the end
    assert late[1200] == pytest.approx(0.02)


def test_a_group_that_begins_at_once_is_as_it_was() -> None:
    (early, _) = factors([Pace(scale=0.3), Pace(7)], warmup=4, steps=24)
    for step, rate in enumerate(early):
        warm = min(1.0, (step + 1) / 4)
        progress = min(1.0, max(0, step - 4) / 20)
        assert rate == 0.3 * warm * (0.02 + (1 - 0.02) * 0.5 * (1 + math.cos(math.pi * progress)))
