"""Text, noise levels, frozen layers, paces, and what people look at, on the smallest models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from diffusers import DDPMScheduler
from torch.utils.data import DataLoader

from ldm_video.core.errors import UserError
from ldm_video.core.evidence import Evidence, build_evidence
from ldm_video.diffusion.process import Process
from ldm_video.models.inflate import VideoUNet
from ldm_video.models.video_model import SamplingDefaults, VideoModel
from ldm_video.training.batches import Draws, make_draws
from ldm_video.training.losses import psnr
from ldm_video.training.model_stage import ModelStage, drop_captions
from ldm_video.training.schedule import Pace
from tests.cli_support import tiny_model
from tests.model_stage_support import denoiser_task, few_step_task, fit, moved
from tests.model_support import perturb, small_text_model, unet_config
from tests.task_support import make_batch, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log", "ignore:You defined a `validation_step`")


MAKERS = {"denoiser": denoiser_task, "few_step": few_step_task}
MakeTask = Callable[..., ModelStage]


@pytest.fixture(params=list(MAKERS))
def make_task(request: pytest.FixtureRequest) -> MakeTask:
    return MAKERS[request.param]


def is_spatial(name: str) -> bool:
    return name.startswith("model.denoiser") and ".temporal." not in name and ".conv_in." not in name


# Text.


def test_the_caption_reaches_the_prediction(tmp_path: Path, make_task: MakeTask) -> None:
    model = small_text_model(tmp_path)
    options = {"seed": 4, "text_dropout": 0.0}

    def loss(**caption: list[str]) -> float:
        return make_task(model, **options).training_step(make_batch() | caption, 0).item()

    assert loss(caption=["a b", "c"]) != loss(caption=["c c", "c"])
    assert loss(caption=["", ""]) == loss()  # a set without captions


def test_dropped_captions_are_the_empty_caption(tmp_path: Path, make_task: MakeTask) -> None:
    model, batch = small_text_model(tmp_path), make_batch()
    dropped = make_task(model, text_dropout=1.0).training_step(batch | {"caption": ["a b", "c"]}, 0)
    empty = make_task(model, text_dropout=1.0).training_step(batch | {"caption": ["", ""]}, 0)
    assert dropped.item() == empty.item()


def test_the_share_of_dropped_captions() -> None:
    captions = [f"clip {index}" for index in range(4000)]
    kept = drop_captions(captions, 0.25, make_draws(0, 0, range(4000)))
    assert {caption for caption in kept if caption} <= set(captions)
    assert sum(caption == "" for caption in kept) == pytest.approx(1000, abs=110)  # four standard deviations
    assert drop_captions(captions, 0.0, make_draws(0, 0, range(4000))) == captions
    assert not any(drop_captions(captions, 1.0, make_draws(0, 0, range(4000))))


def test_a_model_without_text_reads_no_caption(make_task: MakeTask) -> None:
    with_caption = make_task(tiny_model()).training_step(make_batch() | {"caption": ["a", "b"]}, 0)
    assert with_caption.item() == make_task(tiny_model()).training_step(make_batch(), 0).item()


def test_the_text_encoder_is_frozen_and_has_no_dropout(tmp_path: Path, make_task: MakeTask) -> None:
    model = small_text_model(tmp_path).requires_grad_(True).train()
    task = make_task(model)
    assert not any(p.requires_grad for p in model.text.parameters())
    assert not any(module.training for module in model.text.modules())
    held = {id(p) for parameters in task.parameter_groups().values() for p in parameters}
    assert held.isdisjoint(id(p) for p in model.text.parameters())


def test_shares_outside_0_to_1_are_refused(make_task: MakeTask) -> None:
    for share in (1.5, True):
        with pytest.raises(UserError, match=f"text_dropout is {share}"):
            make_task(tiny_model(), text_dropout=share)


# The noise level of the low-res pixels.


def small_upscaler(folder: Path) -> VideoModel:
    """The small text model with the x4-upscaler's noise-level label."""
    model = small_text_model(folder)
    unet = {**unet_config(3 + model.layout.channels, 3, text=True), "num_class_embeds": 400}
    torch.manual_seed(5)
    denoiser = VideoUNet.from_config({"unet": unet, "temporal": {"head_dim": 4}})
    perturb(denoiser)
    sampling = SamplingDefaults(steps=2, noise_level=20, noise_limit=350)
    lowres = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return VideoModel(denoiser, model.codec, model.scheduler, model.layout, model.text, 0.0, sampling, lowres)


def test_low_res_pixels_are_as_noisy_as_the_label_says(tmp_path: Path, make_task: MakeTask) -> None:
    model, batch = small_upscaler(tmp_path), make_batch(clips=6)
    task = make_task(model, noise_level=[200, 350], known_share=0.0)
    condition = task.condition(batch, task.draws(batch, 0))
    assert len(set(condition.noise_level.tolist())) > 1
    assert all(200 <= level <= 350 for level in condition.noise_level.tolist())
    alpha_bar = model.lowres_scheduler.alphas_cumprod[condition.noise_level].view(-1, 1, 1, 1, 1)
    noise = (condition.seen.lowres - alpha_bar.sqrt() * condition.evidence.lowres) / (1 - alpha_bar).sqrt()
    for clip in noise:  # 2304 numbers each
        assert float(clip.mean()) == pytest.approx(0.0, abs=0.1) and float(clip.std()) == pytest.approx(1.0, abs=0.08)
    assert torch.equal(condition.seen.guess, condition.evidence.guess)  # what the decoder sees has no noise


def test_the_level_reaches_the_denoiser_and_every_parameter_learns(tmp_path: Path, make_task: MakeTask) -> None:
    model = small_upscaler(tmp_path).requires_grad_(True)
    task = make_task(model, noise_level=[0, 350])
    batch = make_batch() | {"caption": ["a b", "c"]}
    task.training_step(batch, 0).backward()
    assert [name for name, p in task.named_parameters() if p.requires_grad and p.grad is None] == []
    rows = model.denoiser.unet.class_embedding.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert sorted(rows) == sorted(task.condition(batch, task.draws(batch, 0)).noise_level.tolist())


def test_people_see_the_default_level(tmp_path: Path, make_task: MakeTask) -> None:
    task, batch = make_task(small_upscaler(tmp_path)), make_batch()
    assert task.plain_condition(batch, task.draws(batch, 0, "val")).noise_level.tolist() == [20, 20]
    assert task.condition(batch, task.draws(batch, 0)).noise_level is None
    assert task.restore(batch).shape == batch["hr"].shape


@pytest.mark.parametrize("levels", [[3], [5, 2], [-1, 2], [0, 351]])
def test_levels_that_cannot_be_drawn_are_refused(tmp_path: Path, make_task: MakeTask, levels: list[int]) -> None:
    with pytest.raises(ValueError, match="noise_level"):
        make_task(small_upscaler(tmp_path), noise_level=levels)


def test_a_model_without_the_label_refuses_a_level(make_task: MakeTask) -> None:
    with pytest.raises(ValueError, match="not told of a noise level"):
        make_task(tiny_model(), noise_level=[0, 10])


# Which parameters take gradients: what DDP counts on.


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("spatial", [None, Pace(), Pace(start=100)], ids=["frozen", "full", "late"])
@pytest.mark.parametrize("text", [False, True], ids=["no_text", "text"])
def test_every_trainable_parameter_gets_a_gradient(
    make_task: MakeTask, text: bool, spatial: Pace | None, checkpointing: bool, tmp_path: Path
) -> None:
    """No unused-parameter trap, and not the reentrant one: temporal layers between frozen spatial ones still learn."""
    model = small_text_model(tmp_path) if text else tiny_model()
    model.requires_grad_(True)
    if checkpointing:
        model.denoiser.enable_gradient_checkpointing()
    task = make_task(model.train(), spatial=spatial, text_dropout=0.0)
    task.training_step(make_batch() | {"caption": ["a b", "c"]}, 0).backward()
    trainable = {name for name, p in task.named_parameters() if p.requires_grad}
    assert {name for name, p in task.named_parameters() if p.grad is not None} == trainable
    # A key's bias shifts every score alike, and softmax does not see it: its gradient is rounding noise or zero.
    silent = {name for name, p in task.named_parameters() if p.requires_grad and not p.grad.any()}
    assert all(name.endswith("to_k.bias") for name in silent), silent
    assert any(".temporal." in name for name in trainable)
    assert any(is_spatial(name) for name in trainable) == (spatial is not None)


def test_gradient_checkpointing_changes_no_gradient(make_task: MakeTask) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.denoiser.enable_gradient_checkpointing()
        task = make_task(model, spatial=None)
        task.training_step(make_batch(), 0).backward()
        gradients.append({name: p.grad for name, p in task.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7, msg=name)


# Frozen, then unfrozen.


@pytest.mark.parametrize(("spatial", "steps", "expected"), [(None, 2, None), (Pace(2), 2, False), (Pace(2), 3, True)])
def test_spatial_layers_stand_still_until_their_step(
    make_task: MakeTask, spatial: Pace | None, steps: int, expected: bool | None
) -> None:
    changed = moved(make_task(tiny_model(), spatial=spatial, warmup=0), steps)
    assert {yes for name, yes in changed.items() if is_spatial(name)} == ({expected} - {None})
    assert all(yes for name, yes in changed.items() if not is_spatial(name))
    assert any(".conv_in." in name for name in changed)  # new evidence channels are there


def test_groups_have_their_own_rate_and_warm_up(make_task: MakeTask) -> None:
    task = make_task(tiny_model(), spatial=Pace(start=2, scale=0.1), warmup=2)
    rates: list[tuple[float, ...]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(tuple(group["lr"] for group in trainer.optimizers[0].param_groups))

    fit(task, 4, callbacks=[Watch()])
    cosine = 0.02 + 0.98 / 2  # half-way from step 2 to step 4
    expected = {Pace(): (0.5, 1.0, 1.0, cosine), Pace(2, 0.1): (0.0, 0.0, 0.05, 0.1)}
    for pace, rate in zip(task.parameter_groups(), zip(*rates, strict=True), strict=True):
        assert rate == pytest.approx([1e-3 * factor for factor in expected[pace]])


def test_frozen_layers_do_not_count_for_the_clipping() -> None:
    """Their gradients are dropped before the norm is taken: temporal layers move as if the others had none."""
    runs = []
    for spatial in (None, Pace(start=100)):
        torch.manual_seed(0)
        task = denoiser_task(tiny_model(), spatial=spatial)
        task.make_optimizer = partial(torch.optim.SGD, lr=1.0)
        fit(task, 2, gradient_clip_val=0.01)
        runs.append({name: p.detach().clone() for name, p in task.named_parameters()})
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


# What people look at.


def plain(batch: dict[str, torch.Tensor]) -> Evidence:
    """The evidence of a batch of which nothing else is known."""
    return build_evidence(batch["lr"], batch["hole"])


def test_a_model_without_steps_is_restored_by_its_decoder() -> None:
    model, batch = tiny_model(), make_batch()
    model.sampling = replace(model.sampling, steps=0)
    task = few_step_task(model)
    expected = model.codec.decode(torch.zeros(len(batch["hr"]), 3, 4, 8, 8), plain(batch))
    torch.testing.assert_close(task.restore(batch), expected)


def test_a_model_that_begins_from_the_guess_is_restored_so(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, seen = tiny_model(), make_batch(), []
    task = make_task(model)
    model.sampling = replace(model.sampling, steps=4, strength=0.5)
    predict = task.predict
    monkeypatch.setattr(task, "predict", lambda x, t, condition: (seen.append((x, t)), predict(x, t, condition))[1])
    task.restore(batch)
    assert len(seen) == 2  # half of the steps
    evidence = plain(batch)
    noise = task.noise(batch["hr"], _after_the_evidence(task.draws(batch, 0, "restore")))
    guess = model.codec.encode(evidence.guess, evidence)
    expected = Process.from_scheduler(model.scheduler).noisy(guess, noise, seen[0][1].float())
    torch.testing.assert_close(seen[0][0], expected, rtol=1e-4, atol=1e-4)


def _after_the_evidence(draws: Draws) -> Draws:
    draws.rand(1, 1, 1, 1)
    return draws


def test_validation_uses_a_model_without_steps_as_it_is_used() -> None:
    scores = {}
    for steps in (0, 1):
        model, batch = tiny_model(), make_batch()
        model.sampling = replace(model.sampling, steps=steps)
        task = few_step_task(model)
        (result,) = quiet_trainer().validate(task, DataLoader([batch], batch_size=None), verbose=False)
        scores[steps] = result["val/psnr"]
    alone = task.model.codec.decode(torch.zeros(len(batch["hr"]), 3, 4, 8, 8), plain(batch)).clamp(-1, 1)
    assert scores[0] == pytest.approx(psnr(alone, batch["hr"]).item(), abs=1e-4)
    assert scores[0] != scores[1]


def test_restore_gives_clips_of_the_reference_size(make_task: MakeTask) -> None:
    batch = make_batch()
    task = make_task(tiny_model())
    first, second = task.restore(batch), task.restore(batch)
    assert first.shape == batch["hr"].shape and not first.requires_grad
    assert torch.equal(first, second)
