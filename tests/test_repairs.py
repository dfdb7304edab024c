"""Parts that motion has lost are drawn again: which ones, where the repair lands, and what is left to the decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_video.core.evidence import Evidence, build_evidence
from tests.model_support import rand_pixels, randn
from tests.test_paired_codec import few_asked, record
from tests.test_real_esrgan import published, write_ncnn


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ncnn(tmp_path_factory.mktemp("published") / "net", published(blocks=1))


@torch.no_grad()
def test_what_motion_loses_is_asked_for_again_and_nothing_else(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight frames a part changes in the middle of the group: it alone is repaired, as if that frame were asked for.

    Still frames are left as they are; so is a hole, which is the decoder's.
    """
    paired = few_asked(files)
    paired.every, paired.share = 8, 1.0
    still = rand_pixels(1, 1, 3, 72, 72).repeat(1, 8, 1, 1, 1)
    changed = still.clone()
    changed[:, :3, :, :24, :24] = rand_pixels(3, 24, 24, seed=8).sign()
    nothing = torch.zeros(1, 8, 1, 288, 288)
    evidence = build_evidence(changed, nothing)
    own = evidence.guess + 0.1 * randn(1, 8, 3, 288, 288)
    repairs = record(monkeypatch, paired, "_repair")
    made = paired.finish(own, evidence)
    assert [float(one.shown.mean()) for _, one in repairs] == [pytest.approx(1 / 9, abs=0.03)]  # a block of nine, once
    inside = (..., slice(16, 72), slice(16, 72))
    truth = paired.restored(own[:, [2]], evidence.map(lambda x: x[:, [2]]))[:, 0]
    assert (made[:, 2] - truth)[inside].abs().mean() < 0.1 * (own[:, 2] - truth)[inside].abs().mean()
    paired.finish(own, build_evidence(still, nothing))
    assert len(repairs) == 1
    hole = nothing.clone()
    hole[..., :96, :96] = 1
    paired.finish(own, build_evidence(changed, hole))
    assert len(repairs) == 1
    paired.finish(own, build_evidence(changed, nothing, known_pixels=own.clamp(-1, 1), known=hole))
    assert len(repairs) == 1


class Enlarge(nn.Module):
    """In the restorer's place: looks at no neighbours, so a part of its picture is the picture of that part."""

    def forward(self, lowres: Tensor, own: Tensor) -> Tensor:
        return F.interpolate(lowres, scale_factor=4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(slice(0, 24), slice(24, 48)), (slice(24, 48), slice(24, 48)), (slice(24, 48), slice(48, 72))],
    ids=["at the top", "inside", "at the right"],
)
def test_a_repair_lands_where_it_was_cut_out(
    rows: slice, columns: slice, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paired = few_asked(files)
    paired.restorer = Enlarge()
    lowres = rand_pixels(1, 1, 3, 72, 72).repeat(1, 4, 1, 1, 1)
    lowres[:, :2, :, rows, columns] = rand_pixels(3, 24, 24, seed=8).sign()
    evidence = build_evidence(lowres, torch.zeros(1, 4, 1, 288, 288))
    repairs = record(monkeypatch, paired, "_repair")
    paired.finish(evidence.guess, evidence)
    ((_, repair),) = repairs
    expected = F.interpolate(lowres[0, [1]], scale_factor=4)[0]
    shown = repair.shown > 0
    assert torch.equal(repair.picture * shown, expected * shown)
    box = (slice(rows.start * 4 + 16, rows.stop * 4 - 16), slice(columns.start * 4 + 16, columns.stop * 4 - 16))
    assert bool((repair.shown[box] == 1).all())


def with_a_cut(side: int, rows: slice) -> Evidence:
    """Four frames of which one is asked for, number 2. Two before it show something else in ``rows`` of low-res."""
    lowres = rand_pixels(1, 1, 3, side, side).repeat(1, 4, 1, 1, 1)
    lowres[:, :2, :, rows] = rand_pixels(1, 1, 3, side, side, seed=8)[..., rows, :]
    return build_evidence(lowres, torch.zeros(1, 4, 1, 4 * side, 4 * side))


@pytest.mark.parametrize("side", [72, 96])
def test_of_a_frame_that_is_lost_a_quarter_is_repaired(side: int, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More would cost more than a key frame does."""
    paired, evidence = few_asked(files), with_a_cut(side, slice(None))
    repairs = record(monkeypatch, paired, "_repair")
    paired.finish(evidence.guess, evidence)
    (((_, _, boxes), _),) = repairs
    area = sum((box.bottom - box.top) * (box.right - box.left) for box in boxes)
    assert 0.2 < area / side**2 <= 0.25


@torch.no_grad()
def test_what_no_key_frame_shows_is_the_decoders_alone(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across a cut no ghost of the key frame's picture is left; parts that are repaired do not count."""
    paired, evidence = few_asked(files), with_a_cut(72, slice(None))
    paired.share = 1.0
    repairs = record(monkeypatch, paired, "_repair")
    change = (paired.finish(evidence.guess, evidence) - evidence.guess)[0].abs()  # t 3 H W
    ((_, repair),) = repairs
    repaired = F.max_pool2d((repair.shown > 0).float()[None], 33, stride=1, padding=16)[0] > 0  # H W
    assert change[:2, :, ~repaired].max() < 0.01
    assert change[2, :, ~repaired].mean() > 0.1


@pytest.mark.gpu
def test_the_gpu_finishes_as_the_cpu_does(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key frames, what is carried from them, and repairs."""
    evidence = with_a_cut(72, slice(0, 24))

    def finished(device: str) -> Tensor:
        paired = few_asked(files).to(device)
        repairs, paired.share = record(monkeypatch, paired, "_repair"), 1.0
        for parameter in paired.restorer.exit.parameters():
            parameter.mul_(0.05)  # else its pictures are black and white, and show TF32
        made = paired.finish(evidence.guess.to(device), evidence.map(lambda x: x.to(device)))
        assert made.device.type == device and len(repairs) == 1
        return made.cpu()

    cpu = finished("cpu")
    assert (cpu - evidence.guess).abs().mean() > 0.05
    torch.testing.assert_close(finished("cuda"), cpu, atol=2e-2, rtol=0)
