"""PSNR, SSIM, regions and low-res consistency against hand computation and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as peak_signal_noise_ratio_torch
from torchmetrics.functional.image import structural_similarity_index_measure

from eval.metrics.consistency import bring_down, lowres_consistency
from eval.metrics.fidelity import PSNR_CEILING, luma, psnr, ssim, ssim_map, ssim_window65
from eval.regions import regions


@pytest.fixture
def frames() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ref = np.clip(np.cumsum(rng.normal(0, 0.06, (90, 101, 3)), axis=0) + 0.5, 0, 1).astype(np.float32)
    return np.clip(ref + rng.normal(0, 0.07, ref.shape), 0, 1).astype(np.float32), ref


def test_psnr_by_hand() -> None:
    ref = np.zeros((2, 2, 3), dtype=np.float32)
    pred = ref.copy()
    pred[0, 0] = [0.3, 0.0, 0.0]  # squared error 0.09 in one of twelve values
    assert psnr(pred, ref) == pytest.approx(-10 * math.log10(0.09 / 12))
    corner = np.array([[1, 0], [0, 0]])
    assert psnr(pred, ref, corner) == pytest.approx(-10 * math.log10(0.09 / 3))
    assert psnr(pred, ref, 1 - corner) == PSNR_CEILING
    assert psnr(pred, ref, np.array([[0.5, 0.5], [0, 0]])) == pytest.approx(-10 * math.log10(0.09 / 6))
    assert math.isnan(psnr(pred, ref, np.zeros((2, 2))))


def test_psnr_and_ssim_against_torchmetrics(frames: tuple[np.ndarray, np.ndarray]) -> None:
    pred, ref = (torch.from_numpy(x).permute(2, 0, 1)[None].double() for x in frames)
    assert psnr(*frames) == pytest.approx(float(peak_signal_noise_ratio_torch(pred, ref, data_range=1.0)))
    _, theirs = structural_similarity_index_measure(pred, ref, data_range=1.0, sigma=1.5, return_full_image=True)
    inner = theirs[..., 5:-5, 5:-5].mean()  # windows that do not leave the frame, as scikit-image counts
    assert ssim(*frames) == pytest.approx(float(inner), abs=1e-4)


def test_psnr_against_scikit_image(frames: tuple[np.ndarray, np.ndarray]) -> None:
    pred, ref = frames
    assert psnr(pred, ref) == pytest.approx(
        peak_signal_noise_ratio(ref.astype(float), pred.astype(float), data_range=1)
    )


def test_luma_is_bt601_studio_swing() -> None:
    colours = np.array([[[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]], dtype=np.float32)
    # ITU-R BT.601: black 16, white 235, and 81.481, 144.553, 40.966 for the primaries
    np.testing.assert_allclose(luma(colours)[0] * 255, [16, 235, 81.481, 144.553, 40.966], atol=1e-3)


def test_ssim_against_scikit_image(frames: tuple[np.ndarray, np.ndarray]) -> None:
    pred, ref = (frame.astype(np.float64) for frame in frames)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected, full = structural_similarity(ref, pred, channel_axis=2, full=True, **options)
    assert ssim(pred, ref) == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(ssim_map(pred, ref), full, atol=1e-9)
    assert ssim(luma(pred), luma(ref)) == pytest.approx(
        structural_similarity(luma(ref).astype(float), luma(pred).astype(float), **options), abs=1e-9
    )


def test_ssim_window65_against_scikit_image(frames: tuple[np.ndarray, np.ndarray]) -> None:
    pred, ref = (frame.astype(np.float64) for frame in frames)
    expected = structural_similarity(ref, pred, channel_axis=2, win_size=65, data_range=1.0)
    assert ssim_window65(pred, ref) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="smaller than the 65x65 window"):
        ssim_window65(pred[:64], ref[:64])


def test_ssim_of_a_region(frames: tuple[np.ndarray, np.ndarray]) -> None:
    pred, ref = (frame.astype(np.float64) for frame in frames)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, full = structural_similarity(ref, pred, channel_axis=2, full=True, **options)
    region = np.zeros(ref.shape[:2], dtype=bool)
    region[20:50, 0:40] = True
    assert ssim(pred, ref, region) == pytest.approx(full[20:50, 5:40].mean(), abs=1e-9)  # 5: windows must lie inside
    assert math.isnan(ssim(pred, ref, np.zeros_like(region)))


def test_regions_drawn_by_hand() -> None:
    mask = np.zeros((7, 9))
    mask[3, 4] = 1
    where = regions(mask, band=2)
    drawn = np.array(
        [
            "         ",
            "    b    ",
            "   bbb   ",
            "  bb#bb  ",
            "   bbb   ",
            "    b    ",
            "         ",
        ]
    )
    letters = np.array([list(line) for line in drawn])
    np.testing.assert_array_equal(where["inside"], letters == "#")
    np.testing.assert_array_equal(where["band"], letters == "b")
    np.testing.assert_array_equal(where["outside"], letters != "#")
    assert not regions(np.zeros((4, 4)))["band"].any()


def test_lowres_consistency_of_a_constant_offset() -> None:
    pred = np.full((32, 48, 3), 0.6, dtype=np.float32)
    lowres = np.full((8, 12, 3), 0.5, dtype=np.float32)
    assert lowres_consistency(pred, lowres) == pytest.approx(20.0, abs=1e-4)


def test_lowres_consistency_does_not_see_the_hole(frames: tuple[np.ndarray, np.ndarray]) -> None:
    pred = frames[0][:88, :96]
    lowres = bring_down(pred, (22, 24))
    mask = np.zeros(pred.shape[:2])
    mask[33:60, 41:70] = 1
    changed = np.where(mask[..., None] > 0, 1 - pred, pred)
    assert lowres_consistency(changed, lowres, mask) == PSNR_CEILING
    assert lowres_consistency(changed, lowres) < 30
    assert math.isnan(lowres_consistency(changed, lowres, np.ones_like(mask)))
