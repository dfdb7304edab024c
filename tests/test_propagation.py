"""Propagation: what other frames show is carried over and nothing else; how sure it is tells the truth."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from eval.bench.propagation import measure, table
from eval.degradations import shrink
from eval.framewise import to_image
from eval.holes import still_logo
from eval.inputs import Track, build_inputs
from eval.metrics.fidelity import psnr
from ldm_video.core.evidence import build_evidence, lay_on_grid
from ldm_video.core.push_pull import push_pull
from ldm_video.pipeline.flow import clip_flows, fit_camera, spread
from ldm_video.pipeline.propagation import may_show_more, propagate, reduce_hole, won_share
from ldm_video.video_io import FrameReader
from tests.cli_support import tiny_model

SIZE = (72, 112)


def landscape(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise of many scales, ``h w 3`` in [0, 1]: every place looks like itself only."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for scale in (3, 8, 24):
        coarse = rng.standard_normal((height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(0.5 + 0.15 * picture, 0, 1)


def pan(frames: int, step: float, seed: int = 0) -> Tensor:
    """A camera that moves ``step`` pixels to the right and a third of it down in each frame: ``t 3 h w`` in [-1, 1]."""
    far = int(abs(step) * frames) + 4
    world = landscape(SIZE[0] + far, SIZE[1] + far, seed)
    views = []
    for t in range(frames):
        shift = np.array([[1, 0, -step * t], [0, 1, -step * t / 3]], np.float32)
        views.append(cv2.warpAffine(world, shift, world.shape[1::-1], flags=cv2.INTER_CUBIC)[: SIZE[0], : SIZE[1]])
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).clamp(0, 1) * 2 - 1


def box(frames: int, left: int = 50, side: int = 14, drift: int = 0) -> Tensor:
    hole = torch.zeros(frames, 1, *SIZE)
    for t in range(frames):
        hole[t, :, 30 : 30 + side, left + drift * t : left + drift * t + side] = 1
    return hole


def paint(clip: Tensor, hole: Tensor) -> Tensor:
    return torch.where(hole.bool(), torch.zeros_like(clip), clip)


def quality(pixels: Tensor, truth: Tensor, hole: Tensor) -> float:
    """PSNR in dB where ``hole`` is."""
    wrong = ((pixels - truth) / 2)[hole.bool().expand_as(truth)]
    return float(-10 * torch.log10(wrong.square().mean()))


def test_a_moving_camera_shows_what_a_still_box_hides() -> None:
    truth, hole = pan(14, 2.5), box(14)
    filled, confidence = propagate(paint(truth, hole), hole)
    assert quality(filled, truth, hole) > quality(push_pull(paint(truth, hole), 1 - hole), truth, hole) + 12
    assert quality(filled, truth, hole) > 28
    assert won_share(hole, confidence) > 0.95


def test_a_box_that_moves_over_a_still_picture_hides_nothing() -> None:
    truth, hole = pan(14, 0.0), box(14, left=10, drift=4)
    filled, confidence = propagate(paint(truth, hole), hole)
    assert quality(filled, truth, hole) > 35
    assert won_share(hole, confidence) == 1


def test_pixels_outside_the_hole_are_left_alone() -> None:
    truth, hole = pan(6, 2.5), box(6)
    frames = paint(truth, hole)
    filled, confidence = propagate(frames, hole)
    outside = ~hole.bool()
    assert torch.equal(filled[outside.expand_as(filled)], frames[outside.expand_as(frames)])
    assert torch.equal(confidence[outside], torch.ones_like(confidence[outside]))
    assert confidence.min() >= 0 and confidence.max() <= 1
    assert filled.min() >= -1 and filled.max() <= 1


def test_what_no_frame_shows_is_not_invented() -> None:
    noise = 0.02 * torch.randn(12, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    frames, hole = paint(pan(12, 0.0) + noise, box(12)).clamp(-1, 1), box(12)
    filled, confidence = propagate(frames, hole)
    assert torch.equal(confidence, 1 - hole)
    assert torch.equal(filled, frames)


def test_motion_that_cannot_be_told_from_none_shows_nothing() -> None:
    """A camera that creeps by 0.06 pixels a frame: were it believed, the rim of the hole would be seen beside it."""
    hole = box(24)
    filled, confidence = propagate(paint(pan(24, 0.06), hole), hole)
    assert torch.equal(confidence, 1 - hole)
    assert torch.equal(filled, paint(pan(24, 0.06), hole))


@pytest.mark.parametrize("hole", [torch.zeros(5, 1, *SIZE), torch.ones(5, 1, *SIZE)], ids=["none", "everything"])
def test_no_hole_and_nothing_but_a_hole(hole: Tensor) -> None:
    frames = pan(5, 2.0)
    filled, confidence = propagate(frames, hole)
    assert torch.equal(filled, frames)
    assert torch.equal(confidence, 1 - hole)


def test_one_frame_has_no_others() -> None:
    frames, hole = pan(1, 0.0), box(1)
    assert torch.equal(propagate(frames, hole)[1], 1 - hole)


def test_nothing_bleeds_over_a_cut() -> None:
    clips = [paint(pan(8, 2.5, seed), box(8)) for seed in (1, 2)]
    filled, confidence = propagate(torch.cat(clips), box(16))
    alone = [propagate(clip, box(8)) for clip in clips]
    assert torch.equal(filled, torch.cat([a[0] for a in alone]))
    assert torch.equal(confidence, torch.cat([a[1] for a in alone]))


@pytest.mark.parametrize(
    ("clip", "hole", "more"),
    [
        (pan(8, 2.5), box(8), True),
        (pan(8, 0.0), box(8), False),
        (pan(8, 0.0), box(8, left=10, drift=2), True),
        (pan(8, 2.5), torch.zeros(8, 1, *SIZE), False),
        (pan(8, 2.5)[:1], box(1), False),
    ],
    ids=["camera moves", "all stands still", "hole moves", "no hole", "one frame"],
)
def test_it_is_known_beforehand_where_propagation_is_in_vain(clip: Tensor, hole: Tensor, more: bool) -> None:
    frames = paint(clip, hole)
    assert may_show_more(frames, hole) == more
    if not more:
        assert won_share(hole, propagate(frames, hole)[1]) == 0


def test_light_that_changes_leaves_no_seam() -> None:
    light = torch.linspace(0, 0.3, 14)[:, None, None, None]
    truth, hole = (pan(14, 2.5) * 0.6 + light - 0.2), box(14)
    filled, _ = propagate(paint(truth, hole), hole)
    assert quality(filled, truth, hole) > 30


def test_frames_that_have_nothing_in_common_are_not_believed() -> None:
    frames = torch.stack([pan(1, 0.0, seed)[0] for seed in range(8)])
    assert won_share(box(8), propagate(paint(frames, box(8)), box(8))[1]) == 0


def test_confidence_tells_good_pixels_from_bad() -> None:
    """Half of the hole lies on something that no other frame shows; the rim there gives it away."""
    truth, hole = pan(14, 2.5), box(14, side=20)
    for t in range(len(truth)):
        truth[t, :, 42:, 30:90] = pan(1, 0.0, seed=t + 1)[0, :, 42:, 30:90]
    filled, confidence = propagate(paint(truth, hole), hole)
    error = (filled - truth).square().mean(dim=1, keepdim=True)
    upper, lower = hole.clone(), hole.clone()
    upper[..., 38:, :] = 0
    lower[..., :44, :] = 0
    assert error[upper.bool()].mean() < error[lower.bool()].mean() / 3
    assert confidence[upper.bool()].mean() > 0.5 > confidence[lower.bool()].mean()


@pytest.mark.parametrize("scale", [(4, 4), (2.5, 3.3)], ids=["whole", "broken"])
def test_a_reduced_hole_hands_the_pixels_on_as_evidence(scale: tuple[float, float]) -> None:
    truth = pan(10, 2.5)
    large = torch.zeros(10, 1, round(SIZE[0] * scale[0]), round(SIZE[1] * scale[1]))
    large[..., round(30 * scale[0]) : round(44 * scale[0]), round(50 * scale[1]) : round(64 * scale[1])] = 1
    hole = lay_on_grid(large, SIZE)
    frames = paint(truth, hole)
    filled, confidence = propagate(frames, hole)
    confidence[:, :, 30:37, 50:57] = 0.1 * hole[:, :, 30:37, 50:57]  # let a corner be unknown
    better, left = reduce_hole(frames, large, filled, confidence)
    assert bool((left <= large).all())
    assert 0 < float(left.sum()) < float(large.sum()) / 2
    evidence = build_evidence(better[None], left[None])
    won = (hole - lay_on_grid(left, SIZE)).clamp(min=0).bool()
    lowres = evidence.lowres[0]
    assert torch.equal(lowres[won.expand_as(lowres)], filled[won.expand_as(filled)])
    assert bool(evidence.hole[0, :, :, round(33 * scale[0]), round(53 * scale[1])].all())


def test_an_output_pixel_is_known_where_the_lowres_pixel_at_its_middle_is() -> None:
    frames, large = torch.zeros(1, 3, 20, 20), torch.ones(1, 1, 50, 33)
    confidence = torch.ones(1, 1, 20, 20)
    confidence[..., 7:, :] = 0
    confidence[..., 9:] = 0
    _, left = reduce_hole(frames, large, frames, confidence)
    down, across = (torch.arange(50) + 0.5) * 20 / 50, (torch.arange(33) + 0.5) * 20 / 33
    assert torch.equal(left[0, 0], ((down[:, None] >= 7) | (across >= 9)).float())


def test_nothing_is_reduced_where_nothing_is_known() -> None:
    frames, large = paint(pan(4, 0.0), box(4)), torch.nn.functional.interpolate(box(4), scale_factor=2)
    filled, confidence = propagate(frames, box(4))
    better, left = reduce_hole(frames, large, filled, confidence)
    assert torch.equal(better, frames)
    assert torch.equal(left, large)


def test_a_fit_finds_the_camera_among_things_that_move_by_themselves() -> None:
    height, width = 60, 80
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x / width - 0.5, y / height - 0.5
    camera = np.stack([3 + 2 * x - y + x * x + x * y, -1 + x + 3 * y + x * y + y * y], axis=-1)
    seen = camera + np.random.default_rng(0).normal(0, 0.05, camera.shape).astype(np.float32)
    seen[10:40, 10:50] = (-4, 5)  # a quarter of the picture
    fitted = fit_camera(seen.astype(np.float32), np.ones((height, width), np.float32))
    np.testing.assert_allclose(fitted, camera, atol=0.1)


def test_spreading_keeps_what_is_trusted_and_carries_on_what_is_constant() -> None:
    trust = np.zeros((40, 50), np.float32)
    trust[:, :20] = 1
    values = np.where(trust[..., None] > 0, np.float32(2.5), np.float32(99))
    np.testing.assert_allclose(spread(values, trust), 2.5, atol=1e-4)
    values = np.random.default_rng(0).normal(size=(40, 50, 2)).astype(np.float32)
    np.testing.assert_allclose(spread(values, trust)[:, :20], values[:, :20], atol=1e-6)
    assert np.all(spread(values, np.zeros_like(trust)) == 0)


def test_flow_back_is_the_flow_of_the_clip_played_backwards() -> None:
    truth, hole = pan(3, 2.0), box(3, drift=10)
    smooth = push_pull(paint(truth, hole), 1 - hole)
    frames, holes = list(((smooth.mean(dim=1) + 1) * 127.5).round().byte().numpy()), list(hole[:, 0].numpy() > 0)
    forwards, backwards = clip_flows(frames, holes), clip_flows(frames[::-1], holes[::-1])[::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert one is not None and other is not None
        np.testing.assert_array_equal(one.backward, other.forward)
        np.testing.assert_array_equal(one.forward, other.backward)


@pytest.mark.parametrize("factor", [1, 5], ids=["small", "large"])
def test_flow_is_completed_under_the_hole_on_every_size(factor: int) -> None:
    truth, hole = pan(3, 2.0), box(3)
    smooth = push_pull(paint(truth, hole), 1 - hole)
    grey = ((smooth.mean(dim=1) + 1) * 127.5).round().byte().numpy()
    size = (SIZE[1] * factor, SIZE[0] * factor)
    frames = [cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in grey]
    holes = [cv2.resize(h.numpy(), size, interpolation=cv2.INTER_NEAREST) > 0 for h in hole[:, 0]]
    pair = clip_flows(frames, holes)[1]
    assert pair is not None
    expected = np.array([-2.0, -2.0 / 3]) * factor
    np.testing.assert_allclose(
        pair.forward[holes[1]], np.broadcast_to(expected, (holes[1].sum(), 2)), atol=0.3 * factor
    )
    np.testing.assert_allclose(
        pair.backward[holes[2]], np.broadcast_to(-expected, (holes[2].sum(), 2)), atol=0.3 * factor
    )


def test_a_logo_over_a_real_moving_camera_gains_three_decibels(clips: Path) -> None:
    with FrameReader(clips / "val" / "davis-drift-straight.mp4", deinterlace="off") as reader:
        large = [((f.pixels + 1) / 2).permute(1, 2, 0).numpy() for f in islice(reader, 16)]
    rng = np.random.default_rng(0)
    mask = np.stack([still_logo(rng, len(large), large[0].shape[:2], 0.01)(0)] * len(large))
    hole = lay_on_grid(torch.from_numpy(mask).float()[:, None], (120, 212))
    hole = torch.nn.functional.max_pool2d(hole, 3, stride=1, padding=1)
    painted = [np.where(m[..., None] > 0, np.float32(0.5), f) for m, f in zip(mask, large, strict=True)]
    frames = torch.from_numpy(np.stack([shrink(f, 4, 1.2, 3.0, rng) for f in painted])).permute(0, 3, 1, 2) * 2 - 1
    truth = np.stack([shrink(f, 4, 1.2, 0.0, rng) for f in large])

    def score(pixels: Tensor) -> float:
        image = ((pixels + 1) / 2).permute(0, 2, 3, 1).reshape(-1, 212, 3).numpy()
        return psnr(image, truth.reshape(-1, 212, 3), hole[:, 0].reshape(-1, 212).numpy())

    filled, confidence = propagate(frames, hole)
    better, left = reduce_hole(frames, hole, filled, confidence)
    assert score(push_pull(better, 1 - left)) > score(push_pull(frames, 1 - hole)) + 3


def test_the_benchmark_measures_what_is_there(tmp_path: Path) -> None:
    """Grey paint on a grey picture is right already; nothing can be won, and the table says so."""
    for index in range(4):
        (tmp_path / "clips" / "grey").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "clips" / "grey" / f"{index:05d}.png"), np.full((64, 96, 3), 128, np.uint8))
    track = Track("hole", hole="box", hole_area=0.1)
    (given,) = build_inputs(tmp_path / "clips", tmp_path / "work", track, 4, seed=0)
    row = measure(given, track, 4)
    assert row.won == 0
    assert row.motion == pytest.approx(0, abs=1e-3)
    assert min(row.paint, row.telea, row.smooth) > 45
    assert row.gain == 0
    assert "| hole | grey | 0.00 |" in table([row])
    assert "1 with a still camera: +0.00 dB" in table([row])
    assert row.restored is None and "after the model" not in table([row])


def test_the_benchmark_restores_with_and_without(tmp_path: Path) -> None:
    """A picture that moves past a box: the model, which is not trained, is given more to go by."""
    frames = [(to_image(frame)) for frame in pan(6, 8.0)]
    (tmp_path / "clips" / "pan").mkdir(parents=True)
    for index, frame in enumerate(frames):
        large = cv2.resize(frame, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / "clips" / "pan" / f"{index:05d}.png"), large[..., ::-1])
    track = Track("box", hole="box", hole_area=0.02)
    (given,) = build_inputs(tmp_path / "clips", tmp_path / "work", track, 4, seed=0)
    row = measure(given, track, 4, tiny_model())
    assert row.restored is not None and row.final_gain == row.restored[1] - row.restored[0]
    assert row.won > 0.2 and row.restored[0] != row.restored[1]
    assert f"| box | pan | {row.restored[0]:.2f} | {row.restored[1]:.2f} |" in table([row])
    assert "after the model" in table([row])
