"""Few-step training on schedulers as Stable Diffusion's checkpoints store them: where it begins, and how it goes on."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, SchedulerMixin

from ldm_video.diffusion.sampler import sample, sampling_timesteps
from ldm_video.models.lora import LoRA, add_adapters
from ldm_video.models.video_model import VideoModel
from ldm_video.training.few_step_task import FewStepTask
from ldm_video.training.losses import PixelLoss
from tests.cli_support import tiny_model
from tests.test_training_tasks import make_batch
from tests.train_support import conditioned

ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def published(**options: Any) -> SchedulerMixin:
    """DDIM with the betas and the spacing of Stable Diffusion; a last step ends at the clean sample."""
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1, **options
    )


def model_of(scheduler: SchedulerMixin) -> VideoModel:
    model = tiny_model()
    model.scheduler = scheduler
    return model


def few_step_task(model: VideoModel, **options: Any) -> FewStepTask:
    return FewStepTask(model, PixelLoss(None), ADAMW, **conditioned(options))


@pytest.mark.parametrize("shares", [[1.0], [0.7, 0.1, 0.1, 0.1]])
def test_the_first_timestep_is_the_last_that_was_trained(shares: list[float]) -> None:
    assert published().config.timestep_spacing == "leading"
    task = few_step_task(model_of(published()), step_shares=shares)
    assert task.timesteps[0] == 999 and len(task.timesteps) == len(shares)
    # What is saved with the model visits the same ones.
    assert torch.equal(sampling_timesteps(task.model.scheduler, len(shares)), task.timesteps)


def test_adapters_are_trained_on_the_steps_of_their_base() -> None:
    """They are saved without a scheduler."""
    model, scheduler = tiny_model(), published()
    model.scheduler = scheduler
    add_adapters(model.denoiser, LoRA(rank=2, temporal=True))
    task = few_step_task(model)
    assert task.model.scheduler is scheduler
    assert torch.equal(task.timesteps, sampling_timesteps(scheduler, 4))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_second_jump_starts_where_the_sampler_stands(prediction: str) -> None:
    """Two steps of DDIM, of which the last one ends at the clean sample that the denoiser claims."""
    task = few_step_task(model_of(published(prediction_type=prediction)), step_shares=[0.5, 0.5])
    batch = make_batch()
    draws = task.draws(batch, 0)
    condition, noise = task.condition(batch, draws), task.noise(batch["hr"], draws)
    with torch.no_grad():
        expected = sample(lambda x, t: task.predict(x, t, condition), task.model.scheduler, noise, 2)
        torch.testing.assert_close(task._jump(noise, 1, condition), expected, atol=1e-4, rtol=1e-4)
