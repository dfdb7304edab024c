"""Few-step training on schedulers as Stable Diffusion's checkpoints store them: where it begins, and how it goes on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, SchedulerMixin
from omegaconf import OmegaConf

import train
from ldm_video.diffusion.sampler import sample, sampling_timesteps
from ldm_video.models.lora import LoRA, add_adapters
from ldm_video.models.video_model import VideoModel
from ldm_video.training.few_step_task import FewStepTask
from ldm_video.training.losses import PixelLoss
from tests.cli_support import tiny_model
from tests.task_support import make_batch
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


def test_what_people_see_is_sampled_as_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(published())
    model.sampling = replace(model.sampling, steps=75, guidance=9.0, strength=0.8)
    task, seen = few_step_task(model, step_shares=[0.5, 0.25, 0.25]), []
    predict = task.predict
    monkeypatch.setattr(task, "predict", lambda x, t, condition: (seen.append(int(t)), predict(x, t, condition))[1])
    task.restore(make_batch())
    assert seen == task.timesteps.tolist() and len(seen) == 3
    assert model.sampling == replace(tiny_model().sampling, steps=3, guidance=1.0, strength=1.0)


def test_a_model_without_steps_stays_one() -> None:
    model = tiny_model()
    model.sampling = replace(model.sampling, steps=0)
    assert few_step_task(model).model.sampling.steps == 0


@pytest.mark.parametrize(
    ("data", "own", "expected"),
    [
        ({"scales": [4], "weights": [1]}, 1, 4),
        ({"scales": [2, 3, 1.5], "weights": [0.2, 0.5, 0.3]}, 4, 3),
        ({"scales": [4, 2], "weights": [0.2, 0.8]}, 4, 4),
        ({"scale": 1.5}, 4, 1.5),
        ({}, 2, 2),
    ],
)
def test_the_enlargement_that_is_saved_is_one_of_the_clips(data: dict[str, Any], own: int, expected: float) -> None:
    assert train.trained_scale(OmegaConf.create(data), own) == expected
