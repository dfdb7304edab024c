"""Training the restorer beside a decoder: what it sees, what learns, and what is judged."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.core.evidence import build_evidence
from ldm_video.models.codec import VideoCodec
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.models.real_esrgan import load_published
from ldm_video.training.batches import batch_evidence, make_draws
from ldm_video.training.losses import PixelLoss
from ldm_video.training.restorer_task import RestorerTask
from ldm_video.training.schedule import Pace
from tests.model_support import perturb, rand_pixels
from tests.task_support import make_batch
from tests.test_adversary import critic
from tests.test_real_esrgan import published, write_ncnn

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")

ADAMW = partial(torch.optim.AdamW, lr=1e-3)
LEARNS = ("restorer.trunk.", "restorer.draft.", "restorer.up", "restorer.refine.", "restorer.exit.")


@pytest.fixture
def codec(tmp_path: Path) -> PairedCodec:
    paired = PairedCodec(4, (8, 8, 8, 4), (1, 1, 1), (8, 8), 1, share=0.25)
    perturb(paired.decoder)
    load_published(paired.restorer, write_ncnn(tmp_path / "net", published(blocks=1)))
    return paired


def whole_batch() -> dict[str, Tensor]:
    batch = make_batch()
    return {**batch, "hole": torch.zeros_like(batch["hole"])}


def own_pictures(codec: PairedCodec, batch: dict[str, Tensor]) -> Tensor:
    evidence = batch_evidence(batch, 0.0, make_draws(0, 0, range(2)))
    return codec.decode(torch.zeros(2, 3, 4, 8, 8), evidence)


def test_what_the_restorer_draws_is_trained_and_nothing_else(codec: PairedCodec) -> None:
    RestorerTask(codec, PixelLoss(None), ADAMW).training_step(whole_batch(), 0).backward()
    got = {name: p.grad is not None and bool(p.grad.any()) for name, p in codec.named_parameters()}
    assert [name for name, yes in got.items() if yes != name.startswith(LEARNS)] == []


@torch.no_grad()
def test_published_weights_see_the_lowres_frames_alone_and_trained_ones_the_decoders_pictures(
    codec: PairedCodec,
) -> None:
    evidence = build_evidence(rand_pixels(1, 2, 3, 16, 16), torch.zeros(1, 2, 1, 64, 64))
    one, other = rand_pixels(2, 1, 2, 3, 64, 64)
    untrained = codec.restored(one, evidence)
    torch.testing.assert_close(codec.restored(other, evidence), untrained, atol=1e-5, rtol=0)
    perturb(codec.restorer.draft)
    assert (codec.restored(other, evidence) - codec.restored(one, evidence)).abs().mean() > 1e-3
    # What is beyond the low-res frames is seen: of a picture that has nothing beyond them, nothing.
    torch.testing.assert_close(codec.restored(evidence.guess, evidence), untrained, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("least_share", [0.0, 1.0])
def test_a_mixture_is_judged_with_a_share_down_to_the_least(codec: PairedCodec, least_share: float) -> None:
    batch = whole_batch()
    seen: list[Tensor] = []

    class Watching(PixelLoss):
        def forward(self, output: Tensor, target: Tensor, *others: Any) -> dict[str, Tensor]:
            seen.append(output)
            return super().forward(output, target, *others)

    task = RestorerTask(codec, Watching(None), ADAMW, least_share=least_share)
    for index in range(20):
        task.training_step(batch, index)
    own = own_pictures(codec, batch)
    restored = codec.restored(own, batch_evidence(batch, 0.0, make_draws(0, 0, range(2))))
    shares = torch.stack([((output - own) / (restored - own)).flatten(1).median(dim=1).values for output in seen])
    if least_share == 1:
        torch.testing.assert_close(shares, torch.ones(20, 2), atol=1e-3, rtol=0)
    else:  # of forty draws from 0 to 1
        assert shares.min() < 0.15 and shares.max() > 0.85 and 0.35 < shares.mean() < 0.65


def test_training_brings_what_is_shown_nearer_to_the_truth(codec: PairedCodec) -> None:
    batch = whole_batch()
    task = RestorerTask(codec, PixelLoss(None), partial(torch.optim.AdamW, lr=3e-3))
    optimizer = task.make_optimizer([{"params": [p for p in task.parameters() if p.requires_grad]}])
    before, decoder = (task.restore(batch) - batch["hr"]).abs().mean(), own_pictures(codec, batch)
    for _ in range(40):
        optimizer.zero_grad()
        task.training_step(batch, 0).backward()
        optimizer.step()
    after = (task.restore(batch) - batch["hr"]).abs().mean()
    assert after < 0.95 * before
    assert torch.equal(own_pictures(codec, batch), decoder)


def test_a_model_without_a_restorer_and_a_wrong_share_are_refused(codec: PairedCodec) -> None:
    with pytest.raises(UserError, match="no restorer to train"):
        RestorerTask(VideoCodec(4, (8, 8, 8, 4), (1, 1, 1)), PixelLoss(None), ADAMW)
    for share in (-0.1, 1.1, True):
        with pytest.raises(UserError, match=f"task.least_share is {share}"):
            RestorerTask(codec, PixelLoss(None), ADAMW, least_share=share)


def test_the_last_blocks_alone_are_trained(tmp_path: Path) -> None:
    codec = PairedCodec(4, (8, 8, 8, 4), (1, 1, 1), (8, 8), 3)
    RestorerTask(codec, PixelLoss(None), ADAMW, last_blocks=2)
    learns = {name.removeprefix("restorer.") for name, p in codec.named_parameters() if p.requires_grad}
    parts = {name.rpartition(".")[0] for name in learns}
    assert {part.split(".")[2] for part in parts if part.startswith("trunk.blocks.")} == {"1", "2"}
    assert {part for part in parts if "blocks" not in part} == {"trunk.last", "up2", "up1", "refine", "exit"}
    for wrong in (-1, 4):
        with pytest.raises(UserError, match="has 3 blocks"):
            RestorerTask(codec, PixelLoss(None), ADAMW, last_blocks=wrong)


def test_the_critic_leads_at_its_own_rate(codec: PairedCodec) -> None:
    loss = PixelLoss(None, adversary=critic(conditional=True))
    task = RestorerTask(codec, loss, ADAMW, critic_lead=5, critic_rate=3.0)
    groups = task.parameter_groups()
    assert set(groups) == {Pace(start=5), Pace(scale=3.0)}
    assert sorted(task.group_names()) == ["critic", "restorer"]
    assert {id(p) for p in groups[Pace(scale=3.0)]} == {id(p) for p in loss.adversary.heads.parameters()}
    terms: dict[str, Tensor] = {}
    task.log_dict = terms.update
    task.training_step(whole_batch(), 0).backward()
    assert {"train/adversary", "train/discriminator"} <= terms.keys()
    with pytest.raises(UserError, match="critic_rate"):
        RestorerTask(codec, loss, ADAMW, critic_rate=0.0)
