"""Temporal metrics on synthetic motion whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval import scoring
from eval.clips import ClipPair
from eval.metrics import flow as flows
from eval.metrics.backbones import INSTALL_LINE, MetricUnavailable, lpips_network
from eval.metrics.flow import DisFlow, FarnebackFlow, RaftFlow, backward_warp, motion_boundary, occluded, valid_pixels
from eval.metrics.seams import SeamBorders
from eval.metrics.temporal import (
    HalfSizeMatch,
    ewarp_evalcrafter_match,
    ewarp_evalcrafter_pair,
    ewarp_lai_pair,
    half_size,
    temporal_flickering_pair,
    tof_pair,
)
from eval.scoring import MetricChoice, Scores, Tools, score_clip

SHIFT = (3, -2)  # pixels to the right and down in each frame


class KnownFlow:
    """The true motion, asked for forwards and backwards in turn: the estimator that cannot err."""

    name = "known"

    def __init__(self, dx: float, dy: float) -> None:
        self.motion = np.float32([dx, dy])
        self.calls = 0

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        forwards, self.calls = self.calls % 2 == 0, self.calls + 1
        return np.broadcast_to(self.motion if forwards else -self.motion, (*first.shape[:2], 2)).copy()


def moving_texture(frames: int, height: int = 96, width: int = 128, shift: tuple[int, int] = SHIFT) -> np.ndarray:
    """``t h w 3``: a smooth texture that moves by ``shift`` whole pixels a frame."""
    rng = np.random.default_rng(1)
    margin = 8 * frames
    texture = cv2.GaussianBlur(rng.random((height + 2 * margin, width + 2 * margin, 3)), (0, 0), 2.0)
    texture = ((texture - texture.min()) / np.ptp(texture)).astype(np.float32)
    rows, columns = margin, margin
    clip = []
    for _ in range(frames):
        clip.append(texture[rows : rows + height, columns : columns + width])
        rows, columns = rows - shift[1], columns - shift[0]
    return np.stack(clip)


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scores]:
    """A clip's scores as the tables have them, of arrays ``t h w 3`` (masks ``t h w``) in place of files."""

    def run(
        metric: str,
        pred: np.ndarray,
        ref: np.ndarray,
        flow: object = None,
        masks: np.ndarray | None = None,
        seams: SeamBorders | None = None,
    ) -> Scores:
        roles = {"pred": pred, "ref": ref} | ({} if masks is None else {"mask": masks})
        frames = [{role: clip[t] for role, clip in roles.items()} for t in range(len(pred))]
        monkeypatch.setattr(scoring, "zip_frames", lambda pair: iter(frames))
        if flow is not None:
            monkeypatch.setattr(Tools, "flow", lambda tools: flow)
        scores = score_clip(ClipPair("x", Path("p"), Path("r")), (MetricChoice(metric),), Tools(seams=seams))
        assert set(scores.unavailable) == ({metric} if len(pred) == 1 else set())  # nothing moves in one frame
        return scores.means()

    return run


def test_backward_warp_of_a_whole_shift() -> None:
    clip = moving_texture(2)
    flow = np.broadcast_to(np.float32(SHIFT), (96, 128, 2))
    warped, inside = backward_warp(clip[1], flow)
    expected = np.zeros((96, 128), dtype=bool)
    expected[2:, :125] = True  # what stays in the frame when everything moves 3 right and 2 up
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_allclose(warped[inside], clip[0][inside], atol=2e-5)


def test_backward_warp_is_bilinear() -> None:
    image = np.arange(5, dtype=np.float32)[None, :, None].repeat(3, axis=0)
    warped, _ = backward_warp(image, np.broadcast_to(np.float32([0.3, 0.5]), (3, 5, 2)))
    np.testing.assert_allclose(warped[0, :4, 0], [0.3, 1.3, 2.3, 3.3], atol=1e-5)


def test_perfect_copy_has_no_warp_error(score: Callable[..., Scores]) -> None:
    clip = moving_texture(3)
    known = score("ewarp_lai", clip, clip, KnownFlow(*SHIFT))
    assert known["ewarp_lai[known]"] == known["ewarp_lai[known]:ref"] < 1e-9
    assert score("ewarp_lai", clip, clip, DisFlow())["ewarp_lai[dis]"] < 2e-5  # what DIS itself misses
    noisy = clip + np.random.default_rng(0).normal(0, 0.05, clip.shape).astype(np.float32)
    scores = score("ewarp_lai", noisy, clip, DisFlow())
    assert scores["ewarp_lai[dis]"] > 2e-3 and scores["ewarp_lai[dis]:ref"] < 2e-5


def test_warp_error_of_a_constant_flicker_is_4_d_squared(score: Callable[..., Scores]) -> None:
    clip, d = moving_texture(5), 0.03
    signs = np.float32([1, -1, 1, -1, 1])[:, None, None, None]
    for flow, tolerance in ((KnownFlow(*SHIFT), 1e-3), (DisFlow(), 0.02)):
        scores = score("ewarp_lai", clip + d * signs, clip, flow)
        assert scores[f"ewarp_lai[{flow.name}]"] == pytest.approx(4 * d**2, rel=tolerance)


def test_evalcrafter_sums_channels_at_half_size(score: Callable[..., Scores]) -> None:
    """Flicker of +-d: 3 channels x 4 d^2, whatever the size."""
    clip, d = moving_texture(3, shift=(4, -2)), 0.03
    signs = np.float32([1, -1, 1])[:, None, None, None]
    scores = score("ewarp_evalcrafter", clip + d * signs, clip, KnownFlow(2, -1))
    assert scores["ewarp_evalcrafter[known]"] == pytest.approx(12 * d**2, rel=1e-3)
    assert scores["ewarp_evalcrafter[known]:ref"] < 1e-9
    frame = np.arange(16, dtype=np.float32).reshape(4, 4, 1).repeat(3, axis=2)
    np.testing.assert_allclose(half_size(frame)[..., 0], [[2.5, 4.5], [10.5, 12.5]])


def test_evalcrafter_in_a_region_sees_that_region_alone() -> None:
    """A flicker of +-d in the left half only: 12 d^2 there, nothing in the right half."""
    clip, d = moving_texture(2, shift=(0, 0)), 0.03
    left = np.zeros(clip.shape[1:3])
    left[:, : clip.shape[2] // 2] = 1
    flicker = clip + d * np.float32([1, -1])[:, None, None, None] * left[None, ..., None].astype(np.float32)
    match = ewarp_evalcrafter_match(flicker[0], flicker[1], KnownFlow(0, 0))
    assert ewarp_evalcrafter_pair(match, left) == pytest.approx(12 * d**2, rel=1e-3)
    assert ewarp_evalcrafter_pair(match, 1 - left) == pytest.approx(0, abs=1e-12)
    assert math.isnan(ewarp_evalcrafter_pair(match, np.zeros_like(left)))


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("column", [0, 1])
def test_evalcrafter_counts_a_pixel_of_which_a_quarter_is_in_the_region(row: int, column: int) -> None:
    error = np.arange(1.0, 7.0).reshape(2, 3)
    region = np.zeros((4, 6))
    region[2 + row, 4 + column] = 1
    match = HalfSizeMatch(error, np.ones((2, 3), bool))
    assert ewarp_evalcrafter_pair(match, region) == error[1, 2]


def test_warp_error_counts_valid_pixels_only() -> None:
    frame = np.zeros((4, 4, 3), dtype=np.float32)
    following = frame.copy()
    following[0, 0], following[3, 3] = 0.5, [0.3, 0.0, 0.0]
    still, valid = np.zeros((4, 4, 2), dtype=np.float32), np.ones((4, 4), dtype=bool)
    valid[0, 0] = False
    assert ewarp_lai_pair(frame, following, still, valid) == pytest.approx(0.09 / (15 * 3))
    corner = np.zeros((4, 4))
    corner[2:, 2:] = 1
    assert ewarp_lai_pair(frame, following, still, valid, corner) == pytest.approx(0.09 / (4 * 3))
    assert math.isnan(ewarp_lai_pair(frame, following, still, np.zeros_like(valid)))
    assert math.isnan(ewarp_lai_pair(frame, following, still, valid, np.zeros((4, 4))))


def test_masks_of_a_moving_square_drawn_by_hand() -> None:
    """A 20x20 square goes 8 to the right over a resting background."""
    forward, backward = (np.zeros((60, 80, 2), dtype=np.float32) for _ in range(2))
    forward[20:40, 20:40, 0] = 8
    backward[20:40, 28:48, 0] = -8
    covered = np.zeros((60, 80), dtype=bool)
    covered[20:40, 40:48] = True  # background that the square hides in the second frame
    np.testing.assert_array_equal(occluded(forward, backward), covered)
    outline = np.zeros((60, 80), dtype=bool)
    outline[20:40, [19, 39]] = True  # forward differences: the last pixel before the flow changes
    outline[[19, 39], 20:40] = True
    np.testing.assert_array_equal(motion_boundary(forward), outline)
    np.testing.assert_array_equal(valid_pixels(forward, backward), ~(covered | outline))


def test_occlusion_thresholds() -> None:
    """|f + w(b)|^2 against 0.01 (|f|^2 + |w(b)|^2) + 0.5, and 0.01 |f|^2 + 0.002, on both sides of equality."""
    shape = (5, 5, 2)
    for error, expected in ((0.70, False), (0.715, True)):  # b = 0: error^2 against 0.01 error^2 + 0.5
        forward = np.broadcast_to(np.float32([0, error]), shape)
        assert occluded(forward, np.zeros(shape, np.float32)).all() == expected
    for slope, expected in ((0.0440, False), (0.0455, True)):  # at column 0 f = 0: slope^2 against 0.002
        ramp = np.zeros(shape, dtype=np.float32)
        ramp[..., 1] = slope * np.arange(5)
        assert motion_boundary(ramp)[:, 0].all() == expected


def test_tof_by_hand(score: Callable[..., Scores]) -> None:
    frame = np.zeros((8, 8, 3), dtype=np.float32)
    reference = np.broadcast_to(np.float32([3, 4]), (8, 8, 2))
    assert tof_pair(frame, frame, reference, KnownFlow(0, 0)) == 5.0  # L2 norm of (3, 4)
    clip = moving_texture(3)
    assert score("tof", clip, clip) == {"tof[farneback]": 0.0}
    slower = moving_texture(3, shift=(2, -2))
    inner = np.zeros((96, 128))
    inner[16:80, 16:112] = 1
    farneback = FarnebackFlow()
    value = tof_pair(slower[0], slower[1], farneback(clip[0], clip[1]), farneback, inner)
    assert value == pytest.approx(1.0, abs=0.1)  # 3 px a frame against 2
    scores = score("tof", slower, clip, masks=np.stack([inner] * 3))
    assert scores["tof[farneback]@inside"] == pytest.approx(1.0, abs=0.1)


def test_tlpips_of_a_flicker_over_a_still_reference(score: Callable[..., Scores]) -> None:
    rng = np.random.default_rng(0)
    still = np.repeat(rng.random((1, 64, 64, 3), dtype=np.float32), 3, axis=0)
    flicker = still.copy()
    flicker[1] = np.clip(still[1] + rng.normal(0, 0.1, still[1].shape), 0, 1)
    try:
        network = lpips_network("alex")
    except MetricUnavailable:
        pytest.skip(f"no backbones here: {INSTALL_LINE}")
    x, y = (torch.from_numpy(f).permute(2, 0, 1)[None] * 2 - 1 for f in (still[0], flicker[1]))
    assert score("tlpips", flicker, still)["tlpips"] == pytest.approx(1000 * network(x, y).item(), rel=1e-4)
    assert score("tlpips", flicker, flicker)["tlpips"] == 0.0


@pytest.mark.parametrize("metric", ["ewarp_lai", "ewarp_evalcrafter", "tof", "tlpips", "temporal_flickering"])
def test_a_pair_is_taken_in_the_regions_of_its_first_frame(metric: str, score: Callable[..., Scores]) -> None:
    """The hole goes from the left half to the right, and the left half alone changes: all of it is inside."""
    left = np.zeros((64, 64), dtype=np.float32)
    left[:, :24] = 1
    still = np.repeat(moving_texture(1, 64, 64), 2, axis=0)
    changed = still.copy()
    changed[1, :, :16] = 1 - changed[1, :, :16]
    if metric == "tlpips":
        try:
            lpips_network("alex")
        except MetricUnavailable:
            pytest.skip(f"no backbones here: {INSTALL_LINE}")
    scores = score(metric, changed, still, KnownFlow(0, 0), masks=np.stack([left, 1 - left]))
    (inside,) = (value for column, value in scores.items() if column.endswith("@inside"))
    (outside,) = (value for column, value in scores.items() if column.endswith("@outside"))
    none = 1.0 if metric == "temporal_flickering" else 0.0
    assert abs(inside - none) > 5 * abs(outside - none)


def test_temporal_flickering_is_vbench(score: Callable[..., Scores]) -> None:
    levels = np.array([100, 110, 90], dtype=np.float64) / 255  # mean absolute differences of 10 and 20 of 255
    clip = np.broadcast_to(levels[:, None, None, None], (3, 4, 4, 3)).astype(np.float32)
    scores = score("temporal_flickering", clip, np.zeros_like(clip))
    assert scores["temporal_flickering"] == pytest.approx((255 - 15) / 255, abs=1e-6)
    assert scores["temporal_flickering:ref"] == 1.0


def test_temporal_flickering_of_a_region() -> None:
    frame, following = np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 3), np.float32)
    following[0, 0] = 0.5
    corner = np.array([[1, 0], [0, 0]])
    assert temporal_flickering_pair(frame, following) == pytest.approx(1 - 0.5 / 4)
    assert temporal_flickering_pair(frame, following, corner) == pytest.approx(0.5)
    assert math.isnan(temporal_flickering_pair(frame, following, np.zeros((2, 2))))


def test_one_frame_has_no_temporal_score(score: Callable[..., Scores]) -> None:
    clip = moving_texture(1)
    for metric in ("ewarp_lai", "ewarp_evalcrafter", "tof", "tlpips", "temporal_flickering"):
        assert score(metric, clip, clip) == {}


def test_seam_in_time(score: Callable[..., Scores]) -> None:
    """Steps of 0.02 everywhere, of 0.1 where a window begins: five times the rest."""
    steps = np.array([0, 0.02, 0.02, 0.1, 0.02, 0.02], dtype=np.float64)
    ref = np.zeros((6, 8, 8, 3))
    pred = np.cumsum(steps)[:, None, None, None] + ref
    ratios = score("seam_error", pred, ref, seams=SeamBorders(frames=(3,)))
    assert ratios["seam_error:time"] == pytest.approx(5.0)
    assert math.isnan(ratios["seam_error:space"])
    ratios = score("seam_error", pred, ref, seams=SeamBorders(frames=(1,)))
    assert ratios["seam_error:time"] == pytest.approx(0.02 / 0.04)


def test_seam_in_space(score: Callable[..., Scores]) -> None:
    ramp = 0.01 * np.arange(32) + 0.05 * (np.arange(32) >= 16)  # a step of 0.06 where a tile begins, 0.01 elsewhere
    pred = np.broadcast_to(ramp[None, None, :, None], (2, 24, 32, 3))
    columns = SeamBorders(columns=(16,))
    assert score("seam_error", pred, np.zeros_like(pred), seams=columns)["seam_error:space"] == pytest.approx(6.0)
    turned = pred.transpose(0, 2, 1, 3)
    rows = SeamBorders(rows=(16,))
    assert score("seam_error", turned, np.zeros_like(turned), seams=rows)["seam_error:space"] == pytest.approx(6.0)
    assert score("seam_error", pred, pred, seams=columns)["seam_error:space"] == 1.0


def test_raft_runs_the_network_of_the_file(tmp_path: Path) -> None:
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    network = raft_small(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    first, second = moving_texture(2, 128, 136)
    pair = [torch.from_numpy(f.copy()).permute(2, 0, 1)[None] * 2 - 1 for f in (first, second)]
    with torch.no_grad():
        expected = network(*pair, num_flow_updates=2)[-1][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(RaftFlow(tmp_path / "raft.pth", updates=2)(first, second), expected, atol=1e-4)


def test_raft_without_weights_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(MetricUnavailable, match="no RAFT weights"):
        RaftFlow(tmp_path / "none.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(MetricUnavailable, match="neither"):
        RaftFlow(tmp_path / "other.pth")


def test_grey_is_bt601() -> None:
    np.testing.assert_array_equal(flows.grey(np.float32([[[1, 0, 0], [0, 1, 0], [0, 0, 1]]])), [[76, 150, 29]])
