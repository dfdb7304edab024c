"""Second-order degradation: each factor against its definition, and what drifts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy.special import j1

from data.degradation.filters import bell_kernel, resize, sinc_kernel
from data.degradation.second_order import Round, SecondOrderConfig, blur_kernels, drift, jpeg, noisy, resized


def grey_frames(level: float, count: int = 4, side: int = 96) -> list[np.ndarray]:
    return [np.full((side, side, 3), level, np.float32) for _ in range(count)]


def moments(kernel: np.ndarray) -> np.ndarray:
    """The matrix of second moments (x y) of a kernel around its centre."""
    half = kernel.shape[0] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return np.array(
        [[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]]
    )


def test_the_round_bell_is_opencvs_gaussian() -> None:
    line = cv2.getGaussianKernel(15, 1.7)
    np.testing.assert_allclose(bell_kernel(15, (1.7, 1.7), 0.4), line @ line.T, atol=1e-12)


def test_an_elliptic_bell_has_its_axes() -> None:
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    expected = turn @ np.diag([3.0**2, 1.2**2]) @ turn.T
    np.testing.assert_allclose(moments(bell_kernel(41, (3.0, 1.2), 0.7)), expected, rtol=1e-3)


def test_profiles_follow_their_law() -> None:
    """Along the first axis, of unit sigma, against the centre."""
    x = np.arange(6)
    for profile, law in (
        ("generalized", np.exp(-(x ** (2 * 1.8)) / 2)),
        ("plateau", 1 / (1 + x ** (2 * 1.8))),
    ):
        kernel = bell_kernel(11, (1.0, 2.0), 0.0, profile, 1.8)  # type: ignore[arg-type]
        np.testing.assert_allclose(kernel[5, 5:] / kernel[5, 5], law, atol=1e-12)


@pytest.mark.parametrize("side", [7, 13, 21])
@pytest.mark.parametrize("cutoff", [np.pi / 5, 1.7, np.pi])
def test_the_sinc_is_the_jinc_of_its_definition(side: int, cutoff: float) -> None:
    half = side // 2
    radius = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1])
    radius[half, half] = 1e-9
    expected = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    np.testing.assert_allclose(sinc_kernel(side, cutoff), expected / expected.sum(), atol=1e-9)


def test_a_sinc_lets_pass_what_is_below_its_cutoff() -> None:
    gain = np.abs(np.fft.rfft(sinc_kernel(201, 1.0).sum(0)))
    frequency = np.linspace(0, np.pi, len(gain))
    assert np.abs(gain[frequency < 0.85] - 1).max() < 0.1
    assert gain[frequency > 1.15].max() < 0.1


def test_kernels_are_of_one_kind_and_drift() -> None:
    sides, changes = set(), []
    for seed in range(60):
        kernels = blur_kernels(np.random.default_rng(seed), 5, (0.2, 3.0), (7, 21))
        sides.add(kernels[0].shape[0])
        assert {k.shape for k in kernels} == {kernels[0].shape}
        assert all(abs(k.sum() - 1) < 1e-9 for k in kernels)
        assert all(np.allclose(k, k[::-1, ::-1]) for k in kernels)  # no shift
        changes.append(max(np.abs(a - b).sum() for a, b in zip(kernels[1:], kernels[:-1], strict=True)))
    assert sides == set(range(7, 22, 2))
    assert 0 < np.median(changes) < 0.1
    with pytest.raises(ValueError, match="centre"):
        bell_kernel(8, (1.0, 1.0), 0.0)


def test_a_drift_is_slow_bounded_and_starts_anywhere() -> None:
    paths = np.array([drift(np.random.default_rng(seed), 40, (2.0, 3.0), 0.05) for seed in range(200)])
    assert paths.min() >= 2.0 and paths.max() <= 3.0
    assert np.abs(np.diff(paths, axis=1)).max() <= 1.5 * 0.05 + 1e-9
    assert np.ptp(paths, axis=1).min() > 0.01
    histogram, _ = np.histogram(paths[:, 0], 5, (2, 3))
    assert histogram.min() > 20
    assert np.array_equal(drift(np.random.default_rng(0), 3, (5.0, 5.0), 0.1), [5.0] * 3)


@pytest.mark.parametrize("sigma", [2.0, 12.0])
def test_gaussian_noise_has_its_strength(sigma: float) -> None:
    strengths, greys = [], 0
    round_ = Round(gaussian=(sigma, sigma), poisson=(1e-9, 1e-9))
    for seed in range(60):
        noise = np.array(noisy(grey_frames(0.0, 2, 48), round_, 0.4, np.random.default_rng(seed))) * 127.5
        if noise.std() > 0.01:
            strengths.append(noise.std())
            greys += np.array_equal(noise[..., 0], noise[..., 2])
            assert np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] < 0.1
    assert 18 <= len(strengths) <= 42  # half of the draws are Poisson's
    assert 0.2 < greys / len(strengths) < 0.6
    np.testing.assert_allclose(strengths, sigma, rtol=0.06)


@pytest.mark.parametrize("level", [-0.8, -0.2, 0.3])
def test_poisson_noise_grows_with_the_root_of_the_light(level: float) -> None:
    strengths = []
    round_ = Round(gaussian=(1e-9, 1e-9), poisson=(0.5, 0.5))
    for seed in range(20):
        result = np.array(noisy(grey_frames(level, 2, 48), round_, 0.4, np.random.default_rng(seed)))
        if result.std() > 1e-4:
            strengths.append(result.std() * 127.5)
            assert abs(result.mean() - level) < 0.01
    assert len(strengths) >= 5
    photons = (level + 1) / 2 * 255
    np.testing.assert_allclose(strengths, 0.5 * np.sqrt(photons), rtol=0.08)


def test_sizes_drift_within_the_range_and_modes_have_their_shares() -> None:
    factors, drifting = [], 0
    for seed in range(200):
        frames = [np.zeros((100, 160, 3), np.float32)] * 4
        sizes = [f.shape[:2] for f in resized(frames, Round(), np.random.default_rng(seed))]
        assert all(abs(h / 100 - w / 160) < 0.011 for h, w in sizes)
        factors.append(sizes[0][0] / 100)
        drifting += len(set(sizes)) > 1
    assert min(factors) >= 0.15 and max(factors) <= 1.5
    shares = [np.mean([f > 1 for f in factors]), np.mean([f < 1 for f in factors]), np.mean([f == 1 for f in factors])]
    assert np.abs(np.array(shares) - [0.2, 0.7, 0.1]).max() < 0.08
    assert drifting > 120


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear", "area"])
@pytest.mark.parametrize("size", [(17, 29), (64, 64), (91, 143)])
def test_resizing_by_any_factor_keeps_places(kernel: str, size: tuple[int, int]) -> None:
    """A ramp whose value is its place in the picture stays that ramp."""
    y, x = ((np.arange(n) + 0.5) / n for n in (64, 96))
    clip = torch.from_numpy(np.stack([np.broadcast_to(y[:, None], (64, 96)), np.broadcast_to(x, (64, 96))]))[None]
    result = resize(clip.float(), size, kernel)[0].numpy()
    inner = (slice(3, -3), slice(3, -3))
    tolerance = 0.5 / 64 if kernel == "area" and size[0] > 64 else 1e-3  # enlarging, area repeats pixels
    expected = [(np.arange(n) + 0.5) / n for n in size]
    assert np.abs(result[0][inner] - expected[0][3:-3, None]).max() < tolerance
    assert np.abs(result[1][inner] - expected[1][None, 3:-3]).max() < tolerance


def test_jpeg_loses_more_at_a_lower_quality_and_keeps_colours() -> None:
    rng = np.random.default_rng(0)
    picture = cv2.resize(
        rng.uniform(-0.6, 0.6, (12, 12, 3)).astype(np.float32), (96, 96), interpolation=cv2.INTER_CUBIC
    )
    errors = [jpeg([picture], (q, q), rng)[0] - picture for q in (30.0, 60.0, 95.0)]
    losses = [np.abs(error).mean() for error in errors]
    assert losses[0] > losses[1] > losses[2]
    assert np.abs(errors[2].mean((0, 1))).max() < 0.005


def test_ranges_are_those_of_realbasicvsr() -> None:
    first, second = SecondOrderConfig().rounds
    assert (first.blur_sigma, second.blur_sigma, second.blur_probability) == ((0.2, 3.0), (0.2, 1.5), 0.8)
    assert (first.resize, second.resize) == ((0.15, 1.5), (0.3, 1.2))
    assert (first.gaussian, first.poisson) == ((1.0, 30.0), (0.05, 3.0))
    assert (second.gaussian, second.poisson) == ((1.0, 25.0), (0.05, 2.5))
    assert first.jpeg == second.jpeg == (30.0, 95.0)
