"""High-res -> low-res: each step against an independent computation, then the codec."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.degrade import PRESETS, DegradeConfig, codec_round_trip, degrade, degrade_pixels
from ldm_video.core.tensors import to_bytes, to_signed


def smooth_clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A soft coloured pattern that moves one pixel a frame: ``t h w c`` uint8, away from black and white."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 196, (5, 5, 3)).astype(np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.stack([np.roll(picture, i, axis=1) for i in range(frames)])


def blur_by_hand(image: np.ndarray, sigma: float) -> np.ndarray:
    """Separable Gaussian of a ``h w`` image by its definition, in float64, mirrored border."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for _ in range(2):
        padded = np.pad(image, ((radius, radius), (0, 0)), mode="reflect")
        image = sum(k * padded[i : i + image.shape[0]] for i, k in enumerate(kernel)).T
    return image


@pytest.fixture
def clip() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 64, 96, generator=generator) * 1.2 - 0.6


def test_sd_fixed_is_the_definition_of_the_evaluation(clip: torch.Tensor) -> None:
    """Gaussian blur of sigma 1.2, then Pillow's bicubic to a quarter."""
    quiet = replace(PRESETS["sd_fixed"], noise_sigma=(0.0, 0.0))
    result = degrade_pixels(clip, 4, quiet, np.random.default_rng(0)).numpy()
    for t in range(3):
        for c in range(3):
            blurred = Image.fromarray(blur_by_hand(clip[t, c].double().numpy(), 1.2).astype(np.float32), mode="F")
            expected = np.asarray(blurred.resize((24, 16), Image.Resampling.BICUBIC))
            np.testing.assert_allclose(result[t, c], expected, atol=2e-5)


def test_sd_fixed_noise_has_three_levels(clip: torch.Tensor) -> None:
    config = PRESETS["sd_fixed"]
    grey = torch.zeros(4, 3, 256, 256)
    noise = degrade_pixels(grey, 4, config, np.random.default_rng(1)).numpy() * 127.5
    assert abs(noise.std() - 3) < 0.05
    assert abs(noise.mean()) < 0.1
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_sd_fixed_codec_is_h264_at_crf_20(clip: torch.Tensor) -> None:
    config = PRESETS["sd_fixed"]
    before = to_bytes(degrade_pixels(clip, 4, config, np.random.default_rng(3)))
    expected = codec_round_trip(before.permute(0, 2, 3, 1).numpy(), "h264", 20)
    result = degrade(clip, 4, config, np.random.default_rng(3))
    assert torch.equal(result, to_signed(torch.from_numpy(expected)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_sizes_and_range(clip: torch.Tensor, preset: str, scale: int) -> None:
    result = degrade(clip, scale, PRESETS[preset], np.random.default_rng(0))
    assert result.shape == (3, 3, 64 // scale, 96 // scale)
    assert result.dtype == torch.float32
    assert -1 <= result.min() < result.max() <= 1
    levels = (result + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_clean_at_scale_one_only_rounds(clip: torch.Tensor) -> None:
    result = degrade(clip, 1, PRESETS["clean"], np.random.default_rng(0))
    assert (result - clip).abs().max() <= 0.5 / 127.5 + 1e-6


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear", "area"])
def test_kernels_keep_the_mean_and_do_not_shift(kernel: str) -> None:
    ramp = torch.linspace(-0.8, 0.8, 64).expand(1, 3, 64, 64)
    result = degrade_pixels(ramp, 4, DegradeConfig(resize_kernels=(kernel,)), np.random.default_rng(0))
    expected = ramp[0, 0, 0].reshape(16, 4).mean(1)
    assert torch.allclose(result[0, 0, 8, 2:-2], expected[2:-2], atol=1e-5)


def test_a_draw_is_a_function_of_the_generator(clip: torch.Tensor) -> None:
    first, again, other = (degrade(clip, 4, PRESETS["sd"], np.random.default_rng(s)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4", "mpeg2video"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (5, 33, 31), (12, 18, 50)])
def test_round_trip_keeps_count_size_and_content(codec: str, shape: tuple[int, int, int]) -> None:
    frames = smooth_clip(*shape)
    result = codec_round_trip(frames, codec, 1)
    assert result.shape == frames.shape
    assert result.dtype == np.uint8
    # Every frame comes back in its place: it is nearer to its own source than to the neighbour's.
    for t in range(1, shape[0]):
        own, before = (np.abs(result[t].astype(float) - frames[s]).mean() for s in (t, t - 1))
        assert own < before


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4", "mpeg2video"])
def test_round_trip_has_no_colour_cast(codec: str) -> None:
    """Over several clips the mean of each channel stays within half a level of 255."""
    clips = [smooth_clip(5, 48, 64, seed) for seed in range(6)]
    shifts = [(codec_round_trip(clip, codec, 1).astype(float) - clip).mean(axis=(0, 1, 2)) for clip in clips]
    assert np.abs(shifts).max() < 1
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.5


@pytest.mark.parametrize(
    "colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 40, 30), (20, 180, 60), (40, 60, 200)]
)
def test_round_trip_keeps_flat_colours(colour: tuple[int, int, int]) -> None:
    frames = np.empty((3, 32, 32, 3), np.uint8)
    frames[:] = colour
    result = codec_round_trip(frames, "h264", 1)
    # Limited-range 8-bit Y'CbCr itself resolves no better than about a level.
    assert np.abs(result.astype(int) - frames).max() <= 2
    assert np.abs((result.astype(float) - frames).mean(axis=(0, 1, 2))).max() <= 1


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4", "mpeg2video"])
def test_a_higher_crf_loses_more(codec: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 12, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    errors = [np.abs(codec_round_trip(frames, codec, crf).astype(float) - frames).mean() for crf in (5, 25, 40)]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("wrong", [{"codec": "vp6"}, {"resize_kernels": ("nearest",)}, {"resize_kernels": ()}])
def test_unknown_parts_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="unknown"):
        DegradeConfig(**wrong)  # type: ignore[arg-type]


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="30x32"):
        degrade(torch.zeros(1, 3, 30, 32), 4, PRESETS["clean"], np.random.default_rng(0))
