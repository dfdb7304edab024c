"""Discriminators: both players' gradients, what they can learn, what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ldm_video.training.adversary import Adversary
from ldm_video.training.critic import FeatureCritic, SpectralNorm
from ldm_video.training.losses import PixelLoss
from tests.cli_support import tiny_model
from tests.model_stage_support import few_step_task, fit
from tests.task_support import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log", "ignore:You defined a `validation_step`")


def backbone() -> nn.Sequential:
    """Two convolutions where a pretrained network would stand."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Conv2d(16, 4, 1))


def critic(**options: float) -> FeatureCritic:
    torch.manual_seed(0)
    return FeatureCritic(backbone(), taps=(1, 4), channels=8, **options)


MAKERS = {"patches": lambda: Adversary(channels=8, levels=3), "features": critic}


def test_both_players_get_the_gradients_of_alternating_optimizers() -> None:
    torch.manual_seed(0)
    adversary = Adversary(weight=0.5, channels=8, levels=2)
    target = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    output = (torch.rand(2, 3, 3, 16, 16) * 2 - 1).requires_grad_()
    sum(adversary(output, target).values()).backward()

    def judge(clip: Tensor) -> Tensor:
        return adversary.judge(clip.transpose(1, 2))

    (of_output,) = torch.autograd.grad(-0.5 * judge(output).mean(), output)
    made = output.detach()
    hinge = (torch.relu(1 - judge(target)).mean() + torch.relu(1 + judge(made)).mean()) / 2
    of_judge = torch.autograd.grad(hinge, list(adversary.parameters()))
    torch.testing.assert_close(output.grad, of_output)
    for parameter, gradient in zip(adversary.parameters(), of_judge, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_both_players_learn_in_every_precision(precision: str, kind: str) -> None:
    loss = PixelLoss(None, adversary=MAKERS[kind]())
    task = few_step_task(tiny_model(), pixel_loss=loss, warmup=0)
    before = copy.deepcopy(dict(task.named_parameters()))
    fit(task, 3, precision=precision)
    after = {name: p for name, p in task.named_parameters() if p.requires_grad}
    assert all(torch.isfinite(p).all() for p in after.values())
    assert [name for name, p in after.items() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("kind", list(MAKERS))
def test_the_judge_learns_to_tell_noise_from_a_smooth_clip(kind: str) -> None:
    torch.manual_seed(0)
    adversary = MAKERS[kind]()
    optimizer = torch.optim.Adam((p for p in adversary.parameters() if p.requires_grad), lr=3e-3)
    smooth = make_batch(side=32)["hr"]
    for _ in range(30):
        terms = adversary(torch.rand_like(smooth) * 2 - 1, smooth, torch.Generator())
        optimizer.zero_grad()
        terms["discriminator"].backward()
        optimizer.step()
    assert terms["discriminator"] < 0.2  # 1 where it cannot tell


@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_judge_that_has_learned_draws_the_model_towards_what_is_real(kind: str) -> None:
    torch.manual_seed(0)
    adversary = MAKERS[kind]()
    optimizer = torch.optim.Adam((p for p in adversary.parameters() if p.requires_grad), lr=3e-3)
    smooth = make_batch(side=32)["hr"]
    for _ in range(10):
        optimizer.zero_grad()
        adversary(torch.rand_like(smooth) * 2 - 1, smooth, torch.Generator())["discriminator"].backward()
        optimizer.step()
    noise = torch.rand_like(smooth) * 2 - 1
    as_real, as_made = (float(adversary(x, smooth, torch.Generator())["adversary"]) for x in (smooth, noise))
    assert as_real < 0 < as_made  # weights of verdicts, turned round: the model's loss falls as it comes to look real


def test_what_an_adversary_cannot_be() -> None:
    for options in ({"weight": 0.0}, {"channels": 6}, {"levels": 0}):
        with pytest.raises(ValueError, match="leave the adversary out"):
            Adversary(**options)


# The critic's own.


def test_the_critic_judges_one_frame_of_each_clip_by_hand() -> None:
    judge = critic(weight=0.5, distance_weight=2.0, shift=0)
    target = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    output = (torch.rand(2, 3, 3, 16, 16) * 2 - 1).requires_grad_()
    terms = judge(output, target, torch.Generator().manual_seed(4))
    picked = torch.randint(3, (2,), generator=torch.Generator().manual_seed(4))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def features(clips: Tensor) -> list[Tensor]:
        frames = torch.stack([clip[t] for clip, t in zip(clips, picked, strict=True)])
        first = backbone()[:2](((frames + 1) / 2 - mean) / std)
        return [first, backbone()[2:5](first)]

    real = features(target)
    scales = [x.square().mean().sqrt() for x in real]
    real, made = ([x / s for x, s in zip(taps, scales, strict=True)] for taps in (real, features(output)))
    distance = sum((a - b).abs().mean() for a, b in zip(made, real, strict=True)) / 2
    torch.testing.assert_close(terms["features"], 2.0 * distance)
    verdicts = [head(m) for head, m in zip(judge.heads, made, strict=True)]
    torch.testing.assert_close(terms["adversary"], -0.5 * (verdicts[0].mean() + verdicts[1].mean()) / 2)
    hinges = [
        torch.relu(1 - head(r)).mean() + torch.relu(1 + head(m)).mean()
        for head, r, m in zip(judge.heads, real, made, strict=True)
    ]
    torch.testing.assert_close(terms["discriminator"], (hinges[0] + hinges[1]) / 2 / 2)
    (terms["adversary"] + terms["features"]).backward()
    untouched = [t for t in range(3) if t != int(picked[0])]
    assert output.grad is not None and output.grad[0, int(picked[0])].any() and not output.grad[0, untouched].any()
    assert all(p.grad is None or not p.grad.any() for p in judge.parameters())  # the model's terms leave it alone


def test_the_critic_sees_no_fixed_grid() -> None:
    """Both frames are shifted alike, by another amount from step to step."""
    clip = torch.rand(1, 1, 3, 24, 24, generator=torch.Generator().manual_seed(5))
    judge, other = critic(shift=8), clip.roll(1, dims=-1)
    assert float(judge(clip, clip, torch.Generator().manual_seed(1))["features"]) == 0
    distances = {round(float(judge(other, clip, torch.Generator().manual_seed(s))["features"]), 6) for s in range(6)}
    assert len(distances) > 3


def test_a_weaker_texture_is_at_a_distance() -> None:
    """Half of the contrast has features of nearly the same direction: the distance has to see their length."""
    judge, texture = (
        critic(distance_weight=1.0),
        torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(3)),
    )
    distances = [
        float(judge(texture * contrast, texture, torch.Generator())["features"]) for contrast in (1.0, 0.75, 0.5)
    ]
    assert distances[0] == 0
    assert distances[2] > 1.8 * distances[1] > 0.05


def test_the_critics_own_term_leaves_the_model_alone() -> None:
    judge, output = critic(), (torch.rand(2, 2, 3, 16, 16) * 2 - 1).requires_grad_()
    judge(output, torch.zeros(2, 2, 3, 16, 16), torch.Generator())["discriminator"].backward()
    assert output.grad is None or not output.grad.any()
    assert all(p.grad.any() for p in judge.heads.parameters() if p.ndim > 1)
    assert all(p.grad is None for p in judge.backbone.parameters())


def test_the_same_clip_is_at_no_distance_and_cannot_be_told_apart() -> None:
    clip = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    terms = critic()(clip, clip, torch.Generator())
    assert terms["features"] == 0
    assert terms["discriminator"] >= 1  # hinge of v and -v


def test_spectral_norm_is_that_of_the_singular_values() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    normed = SpectralNorm()(weight).flatten(1)
    assert torch.linalg.svdvals(normed)[0] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(normed / normed[0, 0], weight.flatten(1) / weight[0, 0, 0, 0])


@pytest.mark.parametrize("taps", [(4, 1), (1, 1), (1, 9), (-1, 2)])
def test_taps_that_are_no_layers_are_refused(taps: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="taps"):
        FeatureCritic(backbone(), taps=taps)


def test_the_largest_singular_value_is_found_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast would hand LAPACK, or cuSOLVER, half precision, for which they have nothing."""
    seen: list[torch.dtype] = []
    exact = torch.linalg.eigvalsh

    def spy(matrix: Tensor) -> Tensor:
        seen.append(matrix.dtype)
        return exact(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        SpectralNorm()(torch.randn(4, 3, 3, 3))
    assert seen == [torch.float32]


def test_a_conditional_critic_judges_the_picture_by_what_it_was_made_from() -> None:
    judge = critic(conditional=True)
    output, target, one, other = torch.rand(4, 2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    terms, others = (judge(output, target, torch.Generator().manual_seed(0), seen) for seen in (one, other))
    assert terms["adversary"] != others["adversary"] and terms["features"] == others["features"]
    with pytest.raises(ValueError, match="what the output was made from"):
        judge(output, target, torch.Generator())
    blind = critic()
    assert blind(output, target, torch.Generator(), one) == blind(output, target, torch.Generator())


def test_no_gradient_goes_into_what_a_conditional_critic_is_shown() -> None:
    shown = torch.zeros(2, 2, 3, 16, 16, requires_grad=True)
    output = (torch.rand(2, 2, 3, 16, 16) * 2 - 1).requires_grad_()
    sum(critic(conditional=True)(output, torch.zeros(2, 2, 3, 16, 16), torch.Generator(), shown).values()).backward()
    assert output.grad.any() and shown.grad is None
