"""Several perceptual networks in one: their mean, the dear ones on every other frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm_video.config import build, load_config
from ldm_video.training.judges import Judges
from ldm_video.training.losses import PixelLoss
from tests.cli_support import ROOT


class Judge(nn.Module):
    """Mean squared distance times ``weight``, ``n 1 1 1`` as LPIPS gives it."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.seen: list[int] = []

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.seen.append(len(output))
        return self.weight * (output - target).square().mean(dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize(("frames", "expected"), [(4, [1.5, 2.5, 10.5, 11.5]), (3, [1.5, 2.5, 10.5]), (1, [1.5])])
def test_the_first_sees_all_frames_and_the_others_every_second(frames: int, expected: list[float]) -> None:
    judges = Judges([Judge(2.0), Judge(1.0)])
    errors = torch.tensor([1.0, 2.0, 7.0, 8.0]).sqrt().view(4, 1, 1, 1)[:frames]
    distances = judges(torch.zeros(frames, 3, 4, 4) + errors, torch.zeros(frames, 3, 4, 4))
    torch.testing.assert_close(distances, torch.tensor(expected))
    assert [judge.seen for judge in judges.networks] == [[frames], [(frames + 1) // 2]]


class Recorder(Judge):
    """Remembers which frames it was shown, each of which has its number in all pixels."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.numbers: list[list[int]] = []

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.numbers.append([round(float(frame.mean() * 100)) for frame in output])
        return super().forward(output, target)


def numbered(clips: int, frames: int) -> Tensor:
    """``b t 3 H W``, whose frames are 0.00, 0.01, ... throughout."""
    return (torch.arange(clips * frames) / 100).view(clips, frames, 1, 1, 1).expand(clips, frames, 3, 8, 8).clone()


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_clips_are_seen_on_alternating_frames(frames: int, start: int) -> None:
    judges = Judges([Judge(1.0), Recorder()])
    output = numbered(4, frames).flatten(0, 1)
    distances = judges(output, torch.zeros_like(output), frames, start)
    (seen,) = judges.networks[1].numbers
    board = [clip * frames + frame for clip in range(4) for frame in range(frames) if (clip + frame) % 2 == start]
    assert seen == board
    # Each counts twice, as itself and for its neighbour.
    squares = output.square().mean(dim=(1, 2, 3))
    assert float(distances.mean()) == pytest.approx(float(squares.mean() + squares[board].mean()) / 2, rel=1e-4)


@pytest.mark.parametrize("clips", [1, 4])
@pytest.mark.parametrize("frames", [2, 3])
def test_no_frame_is_hidden_from_a_network_for_ever(frames: int, clips: int) -> None:
    judges = Judges([Judge(1.0), Recorder()])
    loss, generator = PixelLoss(judges, motion_weight=0.0, shift=0), torch.Generator().manual_seed(0)
    output = numbered(clips, frames)
    for _ in range(12):
        loss(output, torch.zeros_like(output), generator)
    shown = judges.networks[1].numbers
    assert set().union(*shown) == set(range(clips * frames))
    if clips > 1:  # in each batch
        assert all({number % frames for number in numbers} == set(range(frames)) for numbers in shown)


@pytest.mark.parametrize("judge", [Judge(1.0), Judges([Judge(1.0), Judge(1.0)])])
def test_each_frame_is_judged_beside_its_own_target(judge: nn.Module) -> None:
    loss = PixelLoss(judge, perceptual_weight=1.0, motion_weight=0.0, shift=2)
    moving = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    terms = loss(moving, moving.clone(), torch.Generator())
    assert terms["perceptual"] == 0
    later = loss(moving, moving.roll(1, dims=1), torch.Generator())
    assert later["perceptual"] > 0.1  # of independent values in [-1, 1] the mean square of a difference is 2/3


def test_one_network_is_itself_and_gradients_reach_the_output() -> None:
    output, target = torch.rand(3, 3, 8, 8, requires_grad=True), torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(Judges([Judge(1.0)])(output, target), (output - target).square().mean(dim=(1, 2, 3)))
    Judges([Judge(1.0), Judge(1.0)])(output, target).mean().backward()
    assert output.grad is not None
    slopes = output.grad.abs().sum(dim=(1, 2, 3)) / (output - target).detach().abs().sum(dim=(1, 2, 3))
    assert slopes[0] == pytest.approx(3 * slopes[1].item(), rel=1e-4)  # seen by both, for the unseen one as well


def test_the_last_stage_is_judged_by_both_networks() -> None:
    config = load_config(ROOT / "configs" / "train" / "tiny" / "polish.yaml", ["data.root=none"])
    judges = build(config.task.pixel_loss.perceptual)
    assert [type(network.net).__name__ for network in judges.networks] == ["alexnet", "vgg16"]
