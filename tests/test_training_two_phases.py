"""The two phases of few-step training: latents, then pixels; and which steps are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm_video.core.errors import UserError
from ldm_video.training.adversary import Adversary
from ldm_video.training.losses import PixelLoss
from tests.cli_support import tiny_model
from tests.model_stage_support import few_step_task, moved
from tests.model_support import small_text_model
from tests.task_support import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log", "ignore:You defined a `validation_step`")


def test_the_latent_phase_trains_the_denoiser_alone() -> None:
    options = {"pixel_from_step": 2, "latent_weight": 1.0, "warmup": 0, "pixel_loss": PixelLoss(None)}
    early = moved(few_step_task(tiny_model(), **options), 2)
    assert {name for name, yes in early.items() if not yes} == {name for name in early if ".decoder." in name}
    late = moved(few_step_task(tiny_model(), **options), 3)
    assert all(late.values())


def test_the_loss_of_the_latent_phase_is_the_latents_distance() -> None:
    model, batch = tiny_model(), make_batch()
    task = few_step_task(model, pixel_from_step=5, latent_weight=0.5, known_share=0.0)
    loss = task.training_step(batch, 3)
    draws = task.draws(batch, 3)
    condition = task.condition(batch, draws)
    noise = task.noise(batch["hr"], draws)
    # A flow's first timestep is pure noise at sigma 1: x0 = noise - output.
    output = model.predict(noise, torch.tensor(1000.0), condition.evidence)
    expected = 0.5 * (noise - output - model.codec.encode(batch["hr"], condition.evidence)).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("adversary", [False, True])
def test_no_parameter_is_left_out_in_either_phase(adversary: bool) -> None:
    for start in (0, 5):
        loss = PixelLoss(None, adversary=Adversary(channels=8, levels=2) if adversary else None)
        task = few_step_task(tiny_model(), pixel_loss=loss, pixel_from_step=start)
        task.training_step(make_batch(), 0).backward()
        assert [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_latent_phase_without_a_latent_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="latent_weight must be positive"):
        few_step_task(tiny_model(), pixel_from_step=5, latent_weight=0.0)


def test_a_share_of_the_steps_trains_the_decoder_alone() -> None:
    model, batch = tiny_model(), make_batch()
    task = few_step_task(model, decoder_share=1.0, known_share=0.0, latent_weight=0.5)
    loss = task.training_step(batch, 3)
    evidence = task.condition(batch, task.draws(batch, 3)).evidence
    alone = model.codec.decode(torch.zeros(len(batch["hr"]), 3, 4, 8, 8), evidence)
    expected = sum(task.pixel_loss(alone, batch["hr"], task.draws(batch, 3).step).values())
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    for name, parameter in model.named_parameters():  # DDP waits for a gradient of everything that is trained
        assert parameter.grad is not None or not parameter.requires_grad, name
        if "denoiser." in name:
            assert not parameter.grad.any()


def test_a_decoder_that_is_blind_or_a_share_beyond_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"decoder_share is 1\.5"):
        few_step_task(tiny_model(), decoder_share=1.5)
    with pytest.raises(ValueError, match="does not see the evidence"):
        few_step_task(small_text_model(tmp_path / "text"), decoder_share=0.5)


@pytest.mark.parametrize("shares", [[0.0, 0.0], [1.0, -0.1], [float("nan"), 1.0], [float("inf")]])
def test_shares_of_steps_that_cannot_be_drawn_are_refused(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="step_shares are numbers from 0 up"):
        few_step_task(tiny_model(), step_shares=shares)
