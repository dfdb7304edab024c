"""What a run will take, as ``--dry-run`` foretells it: parameters, memory and time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm_video.training.estimate import Plan, _saved_bytes, estimate, parameter_table, synthetic_batch
from tests.cli_support import tiny_model
from tests.model_stage_support import TASKS, denoiser_task, few_step_task
from tests.task_support import codec_task

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log", "ignore:You defined a `validation_step`")


PLAN = Plan(batch=2, frames=3, size=(64, 64), scale=4, steps=3600)


def test_the_table_tells_trained_from_frozen() -> None:
    model = tiny_model().requires_grad_(True)
    task = few_step_task(model)
    lines = dict(line.split(": ") for line in parameter_table(model, task).splitlines())
    decoder = sum(p.numel() for p in model.codec.decoder.parameters()) / 1e6
    assert lines["codec"] == f"{decoder:.2f}M parameters, {decoder:.2f}M trained, 0.00M frozen"
    assert lines["denoiser"].endswith("0.00M frozen")
    assert ", 0.00M trained" in parameter_table(model, codec_task(model)).splitlines()[0]  # the denoiser is not in it


def test_the_bytes_that_autograd_keeps_by_hand() -> None:
    """Two linear layers and a tanh: the input and two hidden tensors are kept once each, and no weight is."""
    stage = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5), nn.Tanh())
    with _saved_bytes(stage) as saved:
        stage(torch.rand(7, 10))
    assert saved[0] == 4 * 7 * (10 + 20 + 5)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_estimate_counts_weights_gradients_and_moments(name: str) -> None:
    task = TASKS[name](tiny_model())
    text = estimate(task, PLAN, torch.device("cpu"))
    trained = 4 * sum(p.numel() for p in task.parameters() if p.requires_grad) / 2**20
    weights = 4 * (sum(p.numel() for p in task.parameters()) + sum(b.numel() for b in task.buffers())) / 2**20
    assert f"weights {weights:.1f} MiB, gradients {trained:.1f} MiB, optimizer {2 * trained:.1f} MiB" in text
    assert "average 0.0 MiB" in text and "activations 0.0" not in text


def test_the_estimate_is_of_the_costliest_steps() -> None:
    """Not of those that train the decoder alone, nor of those before the decoder is trained."""
    whole, saving = (
        estimate(few_step_task(tiny_model(), **options), PLAN, torch.device("cpu")).partition("optimizer")[2]
        for options in ({}, {"decoder_share": 1.0, "pixel_from_step": 9, "latent_weight": 0.05})
    )
    assert saving.partition(";")[0] == whole.partition(";")[0]


def test_time_grows_with_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 12.0])  # a first batch of 9 s does not count; the second one takes 2 s
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    plan = Plan(batch=1, frames=2, size=(32, 32), scale=4, steps=3600, accumulate=3)
    assert "2.00 s a batch here (cpu), 6.00 s a step, 6.0 h for 3600 steps" in estimate(
        denoiser_task(tiny_model()), plan, torch.device("cpu")
    )


def test_gradient_checkpointing_keeps_less() -> None:
    kept = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.denoiser.enable_gradient_checkpointing()
        task = denoiser_task(model)
        with _saved_bytes(task) as saved:
            task.training_step(synthetic_batch(PLAN, torch.device("cpu")), 0)
        kept.append(saved[0])
    assert kept[1] < 0.5 * kept[0]


def test_a_large_model_is_not_timed_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_video.training.estimate.TOO_LARGE_FOR_A_CPU", 1e4)
    assert "not measured" in estimate(denoiser_task(tiny_model()), PLAN, torch.device("cpu"))
