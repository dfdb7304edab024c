"""The losses by hand: what each term punishes, and what the judges of pictures see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.training.adversary import Adversary
from ldm_video.training.critic import FeatureCritic
from ldm_video.training.losses import PixelLoss, colour_difference, lattice, psnr


def test_l1_and_motion_by_hand() -> None:
    target = torch.zeros(1, 3, 3, 4, 4)
    output = torch.stack([torch.full((1, 3, 4, 4), v) for v in (0.1, 0.4, -0.2)], dim=1)
    terms = PixelLoss(None, motion_weight=0.5)(output, target, torch.Generator())
    assert set(terms) == {"l1", "motion"}
    assert float(terms["l1"]) == pytest.approx((0.1 + 0.4 + 0.2) / 3)
    assert float(terms["motion"]) == pytest.approx(0.5 * (0.3 + 0.6) / 2)
    assert set(PixelLoss(None)(output[:, :1], target[:, :1], torch.Generator())) == {"l1"}


def test_a_fringe_is_a_colour_that_the_target_lacks() -> None:
    """Grey is no colour, however bright; of red, three tenths are luma."""
    loss = PixelLoss(None, motion_weight=0.0, colour_weight=2.0)
    grey = torch.rand(2, 1, 1, 8, 8).expand(2, 1, 3, 8, 8)

    def term(output: Tensor, target: Tensor) -> float:
        return float(loss(output, target, torch.Generator())["colour"])

    assert term(grey, -grey) == pytest.approx(0, abs=1e-6)
    red = grey + 0.1 * torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    assert term(red, grey) == pytest.approx(2 * (0.0701 + 0.0299) / 2, abs=1e-6)
    assert colour_difference(red).shape == (2, 1, 2, 8, 8)


def dots(period: int, size: int = 48) -> Tensor:
    """A dot of 1 every ``period`` pixels, ``1 3 H W``."""
    frame = torch.zeros(1, 3, size, size)
    frame[..., 1::period, 2::period] = 1
    return frame


def test_a_lattice_is_dots_on_its_period_and_no_other_texture() -> None:
    grey, noise = torch.zeros(1, 3, 48, 48), torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert lattice(grey).shape == (1, 5, 5)  # 12 x 12 periods, windows of 8 x 8
    assert lattice(dots(4)).sub((1 / 16 * 15 / 16) ** 0.5).abs().max() < 1e-3  # the deviation of one 1 among sixteen
    assert lattice(dots(4)).min() > 4 * lattice(dots(3)).max()
    assert lattice(noise * dots(4).std()).max() < 0.3 * lattice(dots(4)).min()
    torch.testing.assert_close(lattice(dots(4).roll((1, 3), dims=(-2, -1))), lattice(dots(4)))  # at any phase


def test_only_the_lattice_beyond_the_target_s_is_punished() -> None:
    loss = PixelLoss(None, lattice_weight=2.0)

    def term(output: Tensor, target: Tensor) -> float:
        return float(loss(output[None], target[None], torch.Generator())["lattice"])

    grey = torch.zeros(1, 3, 48, 48)
    beyond = float((lattice(dots(4)) - lattice(grey)).mean() + (lattice(dots(4), 8, 4) - lattice(grey, 8, 4)).mean())
    assert term(dots(4), grey) == pytest.approx(2 * beyond)
    diagonal = torch.where(torch.eye(2).repeat_interleave(4, 0).repeat_interleave(4, 1).repeat(6, 6) > 0, 1.0, -1.0)
    assert lattice(dots(4) * diagonal).max() < 2e-3  # no dot has its like at its side: of period 8, and none of 4
    assert term(dots(4) * diagonal, grey) > beyond
    assert term(dots(4), dots(4)) == term(grey, dots(4)) == 0
    flat = grey[None].clone().requires_grad_()
    loss(flat, grey[None], torch.Generator())["lattice"].backward()
    assert flat.grad is not None and flat.grad.isfinite().all()


class _Judge(nn.Module):
    """Mean distance; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5))
        self.shapes: list[torch.Size] = []

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.shapes.append(a.shape)
        return (a - b).abs().mean(dim=(1, 2, 3))


def test_the_judge_never_trains_and_sees_every_phase() -> None:
    judge = _Judge()
    loss = PixelLoss(judge, perceptual_weight=0.25, motion_weight=0.0, shift=3)
    nn.ModuleList([loss]).train()  # as a trainer would
    assert not any(module.training for module in loss.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    generator = torch.Generator().manual_seed(0)
    output = torch.full((2, 2, 3, 16, 16), 0.5)
    for _ in range(60):
        terms = loss(output, torch.zeros_like(output), generator)
        assert float(terms["perceptual"]) == pytest.approx(0.25 * 0.5)
    assert {16 - shape[-1] for shape in judge.shapes} == {16 - shape[-2] for shape in judge.shapes} == {0, 1, 2, 3}
    assert {shape[0] for shape in judge.shapes} == {4}


def test_psnr_by_hand() -> None:
    target = torch.zeros(2, 1, 3, 4, 4)
    output = torch.stack([target[0] + 0.2, target[1] + 0.02])  # 0.1 and 0.01 of the range: 20 and 40 dB
    assert psnr(output, target).item() == pytest.approx(30.0, abs=1e-4)


def test_frames_that_are_too_small_for_a_judge_are_refused_at_its_largest_shift() -> None:
    class Judge(nn.Module):
        """Needs 24 pixels to a side."""

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return torch.nn.functional.avg_pool2d(output - target, 24).flatten(1).mean(dim=1)

    loss = PixelLoss(Judge(), shift=8)
    loss.check_size((32, 200))
    with pytest.raises(UserError, match=r"clips of 64x31 cannot be judged by task\.pixel_loss \(.*\); give a larger"):
        loss.check_size((64, 31))
    loss = PixelLoss(None, lattice_weight=1.0)
    loss.check_size((64, 72))
    for size in ((64, 68), (24, 64)):
        with pytest.raises(UserError, match="cannot be judged"):
            loss.check_size(size)
    critic = FeatureCritic(nn.Sequential(nn.Conv2d(3, 4, 20)), taps=(0,))
    for adversary, least in ((Adversary(channels=8), 8), (critic, 28)):
        loss = PixelLoss(None, adversary=adversary)
        loss.check_size((least, least))
        with pytest.raises(UserError, match="cannot be judged"):
            loss.check_size((64, least - 1))
