"""The three tasks, their schedule and their random numbers, on the smallest model."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm_video.core.evidence import build_evidence
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.models.video_model import VideoModel
from ldm_video.training.batches import batch_evidence, make_draws
from ldm_video.training.codec_task import CodecTask
from ldm_video.training.losses import PixelLoss
from ldm_video.training.schedule import warmup_cosine
from ldm_video.training.stage import Stage
from tests.cli_support import tiny_model
from tests.task_support import ADAMW, codec_task, denoiser_task, few_step_task, make_batch, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


TASKS = {"codec": codec_task, "denoiser": denoiser_task, "few_step": few_step_task}
MakeTask = Callable[..., pl.LightningModule]


@pytest.fixture(params=list(TASKS))
def make_task(request: pytest.FixtureRequest) -> MakeTask:
    return TASKS[request.param]


def with_gradient(model: VideoModel, make_task: MakeTask, **options: float) -> tuple[float, dict[str, bool]]:
    """Loss of one step, and whether each parameter of the model got a gradient that is not zero."""
    model.requires_grad_(True)
    loss = make_task(model, **options).training_step(make_batch(), 0)
    loss.backward()
    return loss.item(), {n: p.grad is not None and bool(p.grad.any()) for n, p in model.named_parameters()}


TRAINED = {"codec": ("codec.",), "denoiser": ("denoiser.",), "few_step": ("denoiser.", "codec.decoder.")}


@pytest.mark.parametrize("name", list(TASKS))
def test_every_trained_parameter_gets_a_gradient_and_no_other(name: str) -> None:
    _, got = with_gradient(tiny_model(), TASKS[name])
    assert [n for n, yes in got.items() if yes != n.startswith(TRAINED[name])] == []


def test_what_the_optimizer_holds_is_what_gets_a_gradient(make_task: MakeTask) -> None:
    model, trainer = tiny_model().requires_grad_(True), quiet_trainer()
    trainer.fit(make_task(model), DataLoader([make_batch()], batch_size=None))
    (optimizer,) = trainer.optimizers
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.grad is not None}


def test_a_step_is_a_function_of_seed_and_step_alone(make_task: MakeTask) -> None:
    losses = []
    for noise_before, seed in ((0, 1), (99, 1), (0, 2)):
        model = tiny_model()
        torch.manual_seed(noise_before)
        torch.rand(noise_before)
        losses.append(make_task(model, seed=seed).training_step(make_batch(), 0).item())
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_random_numbers_are_a_pure_function_of_seed_number_and_purpose() -> None:
    def of_clip(seed: int, clip: int, purpose: str = "train", step: int = 0) -> tuple[float, ...]:
        return tuple(make_draws(seed, step, [clip], purpose).randn(2)[0].tolist())

    def of_step(seed: int, step: int, purpose: str = "train", clip: int = 0) -> tuple[float, ...]:
        return tuple(torch.randn(2, generator=make_draws(seed, step, [clip], purpose).step).tolist())

    assert of_clip(1, 2, step=0) == of_clip(1, 2, step=7)
    assert of_step(1, 2, clip=0) == of_step(1, 2, clip=7)
    keys: list[tuple] = [(0, 0), (1, 0), (0, 1), (0, 11), (1, 1), (0, 0, "val")]
    assert len({draw(*key) for draw in (of_clip, of_step) for key in keys}) == 2 * len(keys)


def test_a_clip_has_its_numbers_in_any_batch() -> None:
    together, alone = make_draws(0, 0, [3, 8, 5]), make_draws(0, 1, [8])
    for _ in range(2):  # they go on alike
        assert torch.equal(together.randn(4, 2)[1:2], alone.randn(4, 2))
        assert torch.equal(together.rand(3)[1:2], alone.rand(3))


def test_known_share_decides_between_upscaling_and_inpainting() -> None:
    batch = make_batch()
    none, every = (batch_evidence(batch, share, make_draws(0, 0, range(2))) for share in (0.0, 1.0))
    assert not none.known.any()
    assert torch.equal(none.guess, build_evidence(batch["lr"], batch["hole"]).guess)
    assert torch.equal(every.known, 1 - batch["hole"])
    outside = (batch["hole"] == 0).expand_as(batch["hr"])
    assert torch.equal(every.guess[outside], batch["hr"][outside])


def test_a_single_frame_is_no_lead() -> None:
    batch = make_batch(frames=1)
    evidence = batch_evidence(batch, 0.0, make_draws(0, 0, range(2)), lead_share=1.0)
    assert not evidence.known.any() and torch.equal(evidence.hole, batch["hole"])


def test_lead_share_makes_first_frames_known_whole() -> None:
    batch = make_batch()
    frames, clips = batch["hr"].shape[1], len(batch["hr"])
    counts = set()
    for seed in range(20):
        evidence = batch_evidence(batch, 0.0, make_draws(seed, 0, range(clips)), lead_share=1.0)
        whole = evidence.known.amin(dim=(2, 3, 4))  # b t
        assert torch.equal(whole, evidence.known.amax(dim=(2, 3, 4)))
        assert torch.equal(whole, whole.cummin(dim=1).values)  # the first ones, without a gap
        assert torch.equal(evidence.guess[whole.bool()], batch["hr"][whole.bool()])
        counts |= set(whole.sum(dim=1).int().tolist())
    assert counts == set(range(1, frames // 2 + 1))
    drawn = batch_evidence(batch, 0.4, make_draws(3, 0, range(clips)), lead_share=0.0)
    assert torch.equal(drawn.known, batch_evidence(batch, 0.4, make_draws(3, 0, range(clips))).known)


def test_the_codec_stage_trains_no_restorer_that_its_loss_does_not_see() -> None:
    """DDP ends a run in which a parameter that takes gradients gets none."""
    codec = PairedCodec(4, (8, 8, 8, 4), (1, 1, 1), (8, 8), 1).requires_grad_(True)  # as a stage is given it
    task = CodecTask(codec, PixelLoss(None), ADAMW)
    task.training_step(make_batch(), 0).backward()
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in task.named_parameters() if parameter.grad is not None}
    assert trained and all(name.startswith("codec.decoder.") for name in trained)


@pytest.mark.parametrize(("accumulate", "batches"), [(1, 6), (3, 6), (4, 4)])
def test_the_first_batches_make_a_plain_mean_of_the_scale(accumulate: int, batches: int) -> None:
    model, seen = tiny_model().requires_grad_(True), []
    codec = model.codec
    project = codec.project
    codec.project = lambda *args: seen.append(project(*args)) or seen[-1]
    clips = [make_batch(seed=seed) for seed in range(batches)]
    for batch, size in zip(clips, range(1, batches + 1), strict=True):  # of another scale each
        batch["hr"] = batch["hr"] * size / batches
    trainer = quiet_trainer(max_steps=-(-batches // accumulate), accumulate_grad_batches=accumulate)
    trainer.fit(codec_task(model, known_share=0.0), DataLoader(clips, batch_size=None))
    raw = seen[:: len(seen) // batches]  # encoding projects as well
    assert len(raw) == batches
    deviations = torch.stack([x.square().mean(dim=(0, 1, 3, 4)).sqrt() for x in raw])
    torch.testing.assert_close(codec.latent_std.flatten(), deviations.mean(dim=0).detach().flatten())


class _Numbers(Stage):
    """Remembers what is drawn for each clip in validation."""

    def __init__(self) -> None:
        super().__init__(ADAMW)
        self.drawn: list[float] = []

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.drawn += self.draws(batch, index, "val").rand().tolist()


def test_a_clip_has_its_numbers_in_validation_whatever_the_batch() -> None:
    drawn = {}
    for size in (1, 4, 5):  # the last batch of four has two
        task, clips = _Numbers(), [{"hr": torch.zeros(1)}] * 10
        quiet_trainer().validate(task, DataLoader(clips, batch_size=size), verbose=False)
        drawn[size] = task.drawn
    assert len(set(drawn[1])) == 10
    assert drawn[1] == drawn[4] == drawn[5]


# Schedule.


def test_warm_up_is_linear_and_the_cosine_ends_at_its_floor() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(optimizer, warmup=4, steps=24, floor=0.1)["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[14] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half-way between warm-up and end
    assert rates[9] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert rates[24:] == pytest.approx([0.2] * 6)


# Learning.


def test_the_codec_learns_one_clip() -> None:
    model, batch = tiny_model(), make_batch(clips=1)
    with torch.no_grad():  # as a fresh codec starts: from the evidence's guess
        model.codec.decoder.exit.weight.zero_()
        model.codec.decoder.exit.bias.zero_()
    task = codec_task(model, known_share=0.0)
    optimizer = torch.optim.AdamW(model.codec.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = task.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_validation_reports_psnr_against_the_clean_clip() -> None:
    """A decoder whose last layer is zero, and latents of no size: the guess, whose PSNR needs no model."""
    model, batch = tiny_model(), make_batch()
    with torch.no_grad():
        model.codec.basis.zero_()
        model.codec.decoder.exit.weight.zero_()
        model.codec.decoder.exit.bias.zero_()
    guess = build_evidence(batch["lr"], batch["hole"]).guess
    mse = ((guess - batch["hr"]).double() / 2).square().flatten(1).mean(1)
    expected = float((10 * (1 / mse).log10()).mean())
    for task in (codec_task(model), few_step_task(model)):
        (result,) = quiet_trainer().validate(task, DataLoader([batch], batch_size=None), verbose=False)
        assert result["val/psnr"] == pytest.approx(expected, abs=1e-3)
