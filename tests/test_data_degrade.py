"""High-res -> low-res: each step against an independent computation, then the codec."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.degradation.codec import interlaced_round_trip, rate_round_trip
from data.degradation.fields import field_moments
from data.degrade import PRESETS, DegradeConfig, codec_round_trip, degrade, degrade_pixels, exact_scale
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


def test_sd_draws_in_the_order_of_the_shipped_training(clip: torch.Tensor) -> None:
    """Blur, kernel, noise, grain, quality, codec: another order would be another training stream for the same seed."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        sigma, kernel, noise = (
            rng.uniform(0.6, 1.6),
            ("bicubic", "area", "bilinear")[rng.integers(3)],
            rng.uniform(0, 6),
        )
        side = 2 * int(4 * sigma + 0.5) + 1
        soft = np.stack([cv2.GaussianBlur(f, (side, side), sigma) for f in clip.permute(0, 2, 3, 1).numpy()])
        antialias = {} if kernel == "area" else {"antialias": True, "align_corners": False}
        pixels = torch.from_numpy(soft).permute(0, 3, 1, 2)
        small = torch.nn.functional.interpolate(pixels, size=(16, 24), mode=kernel, **antialias)
        grain = torch.from_numpy(rng.standard_normal((3, 3, 16, 24), dtype=np.float32))
        before = to_bytes(small + grain * (noise / 127.5)).permute(0, 2, 3, 1).numpy()
        crf, codec = int(rng.integers(16, 27)), ("h264", "h264", "h264_live")[rng.integers(3)]
        expected = codec_round_trip(before, codec, crf)
        result = degrade(clip, 4, PRESETS["sd"], np.random.default_rng(seed))
        assert torch.equal(to_bytes(result).permute(0, 2, 3, 1), torch.from_numpy(expected))


def dot(frames: int, side: int, at: tuple[float, float], speed: float = 0.0, sigma: float = 7.0) -> torch.Tensor:
    """``t 3 side side``: a soft bright dot on dark grey, its centre ``at`` (y, x) pixels from the corner."""
    y, x = np.mgrid[:side, :side] + 0.5
    shift = np.arange(frames)[:, None, None] * speed
    bump = np.exp(-((y - at[0]) ** 2 + (x - at[1] - shift) ** 2) / (2 * sigma**2))
    return torch.from_numpy((bump * 1.4 - 0.7).astype(np.float32))[:, None].repeat(1, 3, 1, 1)


def centres(clip: torch.Tensor) -> np.ndarray:
    """Of the dot in each frame: ``t 2`` (y, x) in pixels from the picture's corner."""
    weight = (clip.mean(1).double().numpy() + 0.3).clip(0)
    y, x = np.mgrid[: clip.shape[2], : clip.shape[3]] + 0.5
    total = np.maximum(weight.sum((1, 2)), 1e-9)  # a wild picture may have lost the dot
    return np.stack([(weight * y).sum((1, 2)), (weight * x).sum((1, 2))], -1) / total[:, None]


@pytest.mark.parametrize("scale", [1, 1.5, 2, 3, 4])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_dot_stays_where_it_is(preset: str, scale: float) -> None:
    """A shift by half a low-res pixel, the usual mistake, would move it by scale / 2."""
    clip = dot(3, 96, (40.0, 53.5))
    draws = [degrade(clip, scale, PRESETS[preset], np.random.default_rng(seed)) for seed in range(8)]
    assert draws[0].shape == (3, 3, 96 / scale, 96 / scale)
    errors = np.array([centres(draw) * scale - [40.0, 53.5] for draw in draws])  # draw t 2
    assert np.abs(np.median(errors, axis=(0, 1))).max() < 0.2
    assert np.quantile(np.abs(errors), 0.9) < max(0.5, 0.2 * scale)


@pytest.mark.parametrize("preset", ["broadcast", "wild"])
def test_frames_keep_their_times(preset: str) -> None:
    """The dot goes four pixels a frame; half a frame of delay would be two pixels."""
    clip = dot(5, 96, (48.0, 36.5), speed=4.0)
    draws = [degrade(clip, 2, PRESETS[preset], np.random.default_rng(seed)) for seed in range(10)]
    errors = np.median([centres(draw) * 2 - centres(clip) for draw in draws], axis=0)  # t 2
    assert np.abs(errors).max() < 0.5


@pytest.mark.parametrize("preset", ["sd", "broadcast", "wild"])
def test_the_input_stays_and_threads_do_not_matter(clip: torch.Tensor, preset: str) -> None:
    before, threads = clip.clone(), cv2.getNumThreads()
    results = []
    try:
        for count in (1, 3):
            cv2.setNumThreads(count)
            results.append([degrade(clip, 2, PRESETS[preset], np.random.default_rng(seed)) for seed in range(4)])
    finally:
        cv2.setNumThreads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][0], results[0][1])
    assert torch.equal(clip, before)


def test_half_moments_lie_half_way() -> None:
    clip = dot(4, 96, (48.0, 40.0), speed=3.0)
    moments = field_moments(clip)
    assert torch.equal(moments[0::2], clip)
    travelled = centres(moments)[:, 1] - 40.0
    np.testing.assert_allclose(travelled, np.arange(8) * 1.5, atol=0.35)
    assert torch.equal(field_moments(clip[:1])[1], clip[0])


def test_fields_are_woven_and_the_first_one_is_kept() -> None:
    """Moments of two greys: a frame of the recording is its first moment's grey on that field's lines."""
    grey = np.array([60, 180, 60, 180, 60, 180, 60, 180], np.uint8)
    moments = np.broadcast_to(grey[:, None, None, None], (8, 34, 50, 3))
    result = interlaced_round_trip(moments, 12).astype(int)
    assert result.shape == (4, 34, 50, 3)
    assert np.abs(result[:, 0::2] - 60).max() <= 3
    still = np.repeat(smooth_clip(4, 36, 50)[:1], 8, axis=0)
    fields, whole = interlaced_round_trip(still, 12).astype(int), codec_round_trip(still[:4], "mpeg2video", 12)
    assert np.abs(fields - still[:4]).mean() < 1.5 * np.abs(whole.astype(int) - still[:4]).mean()


def test_broadcast_hurts_motion_and_spares_what_is_still() -> None:
    """Against progressive MPEG-2 at the same quality: half of the lines of what moves are guessed."""
    fine = np.random.default_rng(0).integers(40, 216, (24, 40)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    errors = {}
    for speed in (0, 6):
        picture = np.stack([np.roll(fine, speed * i, axis=0)[:96, :160] for i in range(6)])
        clip = to_signed(torch.from_numpy(picture))[:, None].repeat(1, 3, 1, 1)
        fields = replace(PRESETS["broadcast"], blur_sigma=(0, 0), noise_sigma=(0, 0), crf=(18, 18))
        for name, config in (("fields", fields), ("whole", replace(fields, interlaced=False))):
            result = degrade(clip, 2, config, np.random.default_rng(0))
            clean = degrade_pixels(clip, 2, config, np.random.default_rng(0))
            errors[name, speed] = (result - clean)[1:-1].square().mean().item()
    assert errors["fields", 6] > 3 * errors["whole", 6]
    assert errors["fields", 0] < 2 * errors["whole", 0]


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


@pytest.mark.parametrize("codec", ["h264", "h264_live", "hevc", "mpeg4", "mpeg2video"])
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


@pytest.mark.parametrize("codec", ["h264", "h264_live", "hevc", "mpeg4", "mpeg2video"])
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


@pytest.mark.parametrize("codec", ["h264", "h264_live", "hevc", "mpeg4", "mpeg2video"])
def test_a_higher_crf_loses_more(codec: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 12, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    errors = [np.abs(codec_round_trip(frames, codec, crf).astype(float) - frames).mean() for crf in (5, 25, 40)]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("codec", ["h264", "h264_live", "mpeg4", "mpeg2video"])
def test_more_bits_lose_less(codec: str) -> None:
    """In clips of three frames too, where an unbounded first frame would take what it likes."""
    frames = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    errors = [np.abs(rate_round_trip(frames, codec, bits).astype(float) - frames).mean() for bits in (0.05, 0.5, 5.0)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"codecs": ("vp6",)},
        {"resize_kernels": ("nearest",)},
        {"resize_kernels": ()},
        {"interlaced": True},
        {"interlaced": True, "codecs": ("mpeg2video",)},
    ],
)
def test_unknown_parts_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"unknown|fields"):
        DegradeConfig(**wrong)  # type: ignore[arg-type]


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="30x32"):
        degrade(torch.zeros(1, 3, 30, 32), 4, PRESETS["clean"], np.random.default_rng(0))
    with pytest.raises(ValueError, match="32x32"):
        degrade(torch.zeros(1, 3, 32, 32), 1.5, PRESETS["wild"], np.random.default_rng(0))
    with pytest.raises(ValueError, match="enlarge"):
        degrade(torch.zeros(1, 3, 32, 32), 0.5, PRESETS["clean"], np.random.default_rng(0))


def test_a_scale_typed_to_three_places_is_the_fraction_that_was_meant() -> None:
    assert [exact_scale(scale) for scale in (1.333, 2.667, 1.5, 3)] == [Fraction(n, 6) for n in (8, 16, 9, 18)]
