"""Colour, soft borders, sizes and devices: each against a result worked out by hand or by another library."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ldm_video.core.errors import UserError
from ldm_video.models.device import place
from ldm_video.pipeline.colour import METHODS, match_colour
from ldm_video.pipeline.composite import dilate, feather, put_back
from ldm_video.pipeline.job import Job, Stopped, Watch, read_pieces
from ldm_video.pipeline.plan import Segment
from ldm_video.pipeline.sizes import output_size, parse_tile, scale_box
from ldm_video.video_io import probe
from tests.model_support import box_hole, rand_pixels, small_video_model

SHIFT = torch.tensor([0.2, -0.1, 0.05]).view(3, 1, 1)


# Colour


@pytest.mark.parametrize("size", [(64, 96), (70, 45), (20, 20)])
@pytest.mark.parametrize("method", ["wavelet", "adain"])
def test_a_constant_shift_of_colour_is_removed(method: str, size: tuple[int, int]) -> None:
    guess = rand_pixels(1, 2, 3, *size) * 0.5
    hole = box_hole(2, size, slice(0, 15), slice(5, 19))
    fixed = match_colour(guess + SHIFT, guess, hole, method)
    torch.testing.assert_close(fixed, guess, atol=1e-5, rtol=0)


@given(st.integers(20, 70), st.integers(20, 70), st.integers(0, 20), st.sampled_from(["wavelet", "adain"]))
@settings(max_examples=20)
def test_what_stands_in_the_hole_changes_nothing_outside(height: int, width: int, edge: int, method: str) -> None:
    hole = box_hole(1, (height, width), slice(edge, height - 3), slice(0, width // 2))
    guess, output = rand_pixels(1, 1, 3, height, width), rand_pixels(1, 1, 3, height, width, seed=1)
    other = torch.where(hole.bool(), rand_pixels(1, 1, 3, height, width, seed=2), output)
    outside = (1 - hole).bool().expand_as(output)
    one, two = (match_colour(x, guess, hole, method)[outside] for x in (output, other))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)
    assert (one - output[outside]).abs().max() > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_a_full_hole_returns_the_output(method: str) -> None:
    output, guess = rand_pixels(1, 2, 3, 40, 40), rand_pixels(1, 2, 3, 40, 40, seed=1)
    hole = torch.ones(1, 2, 1, 40, 40)
    assert torch.equal(match_colour(output, guess, hole, method), output)
    hole[:, 1] = 0  # in one frame of two
    fixed = match_colour(output, guess, hole, method)
    torch.testing.assert_close(fixed[:, 0], output[:, 0], atol=1e-5, rtol=0)


def test_adain_matches_mean_and_deviation_outside_the_hole() -> None:
    guess, output = rand_pixels(2, 3, 3, 24, 30) * 0.4 + 0.3, rand_pixels(2, 3, 3, 24, 30, seed=1).pow(3)
    hole = box_hole(3, (24, 30), slice(4, 20), slice(10, 30)).expand(2, 3, 1, 24, 30)
    fixed = match_colour(output, guess, hole, "adain").numpy()
    keep = hole[0, 0, 0].numpy() == 0
    for index in np.ndindex(2, 3, 3):
        assert fixed[index][keep].mean() == pytest.approx(guess.numpy()[index][keep].mean(), abs=1e-5)
        assert fixed[index][keep].std() == pytest.approx(guess.numpy()[index][keep].std(), abs=1e-4)


def test_wavelet_takes_low_frequencies_from_the_evidence_and_keeps_detail() -> None:
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    detail = 0.1 * (-1.0) ** (x + y)
    slow = 0.3 * torch.cos(2 * torch.pi * y / 256)
    guess = (0.2 * x / 256).expand(1, 1, 3, 256, 256)
    fixed = match_colour(guess + detail + slow, guess, torch.zeros(1, 1, 1, 256, 256))
    error = (fixed - guess - detail)[..., 32:-32, 32:-32]
    assert error.abs().max() < 0.03  # of a wave of 0.3
    assert error.diff(dim=-1).abs().max() < 1e-3  # the detail itself is untouched


def test_a_few_pixels_beside_a_hole_do_not_tell_the_colours_of_their_surroundings() -> None:
    """One row of 32 in a square of 32 x 32 is all that is seen there."""
    hole, guess = box_hole(1, (64, 64), slice(0, 31), slice(0, 32)), 0.2 * rand_pixels(1, 1, 3, 64, 64)
    output = guess + SHIFT
    other = output.clone()
    other[..., 31, :32] += 0.5
    added, besides = (match_colour(x, guess, hole) - x for x in (output, other))
    torch.testing.assert_close(added, besides, atol=1e-6, rtol=0)


def test_no_colour_fix_and_an_unknown_one() -> None:
    output, guess, hole = rand_pixels(1, 1, 3, 8, 8), torch.zeros(1, 1, 3, 8, 8), torch.zeros(1, 1, 1, 8, 8)
    assert match_colour(output, guess, hole, "none") is output
    with pytest.raises(ValueError, match="sepia"):
        match_colour(output, guess, hole, "sepia")


# Soft borders

MASKS = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(0, 99), st.sampled_from([0.02, 0.2, 1.0]))


def random_mask(case: tuple[int, int, int, float]) -> torch.Tensor:
    height, width, seed, share = case
    return (torch.rand((1, 1, 1, height, width), generator=torch.Generator().manual_seed(seed)) < share).float()


@given(MASKS, st.integers(0, 5))
def test_dilate_is_binary_dilation_by_a_square(case: tuple[int, int, int, float], radius: int) -> None:
    mask = random_mask(case)
    square = np.ones((2 * radius + 1, 2 * radius + 1))
    expected = ndimage.binary_dilation(mask[0, 0, 0].numpy(), square)
    assert np.array_equal(dilate(mask, radius)[0, 0, 0].numpy(), expected)


@given(MASKS, st.integers(0, 9))
def test_feather_is_one_on_the_mask_and_exactly_zero_beyond_its_width(
    case: tuple[int, int, int, float], width: int
) -> None:
    mask = random_mask(case)
    soft = feather(mask, width)
    assert bool((soft[mask.bool()] == 1).all())
    near = dilate(mask, width).bool()
    assert bool((soft[~near] == 0).all())
    assert bool((soft[near] > 0).all())
    assert bool((soft <= 1 + 1e-6).all())


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (0, [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]),
        (2, [0, 0, 0, 1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3, 0, 0, 0]),
        (4, [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]),
    ],
)
def test_feather_falls_in_a_straight_line(width: int, expected: list[float]) -> None:
    mask = torch.zeros(1, 1, 1, 9, 12)
    mask[..., 5:7] = 1
    soft = feather(mask, width)[0, 0, 0]
    torch.testing.assert_close(soft, torch.tensor(expected, dtype=torch.float32).expand(9, 12))


def test_put_back_keeps_known_pixels_exactly_and_blends_between() -> None:
    output, known = rand_pixels(1, 2, 3, 20, 24), rand_pixels(1, 2, 3, 20, 24, seed=1)
    hole = box_hole(2, (20, 24), slice(8, 12), slice(0, 6))
    mixed = put_back(output, known, hole, 4)
    inside, beyond = hole.bool().expand_as(output), ~dilate(hole, 4).bool().expand_as(output)
    assert torch.equal(mixed[inside], output[inside])
    assert torch.equal(mixed[beyond], known[beyond])
    torch.testing.assert_close(mixed[..., 9, 7], 0.4 * known[..., 9, 7] + 0.6 * output[..., 9, 7])


# Sizes


@pytest.mark.parametrize(
    ("size", "scale", "height", "expected"),
    [
        ((100, 180), 4, None, (400, 720)),
        ((45, 81), 3, None, (135, 243)),
        ((45, 81), 1, None, (45, 81)),
        ((45, 81), 1.0, None, (45, 81)),
        ((100, 180), 2.5, None, (250, 450)),
        ((101, 181), 1.5, None, (152, 272)),
        ((480, 720), None, 720, (720, 1080)),
        ((576, 1024), None, 720, (720, 1280)),
        ((500, 7), None, 100, (100, 2)),
    ],
)
def test_output_size(size: tuple[int, int], scale: float | None, height: int | None, expected: tuple[int, int]) -> None:
    assert output_size(size, scale, height) == expected


@given(st.integers(1, 999), st.integers(1, 999), st.floats(1, 8))
def test_output_size_is_never_smaller_than_the_input(h: int, w: int, scale: float) -> None:
    for side, new in zip((h, w), output_size((h, w), scale, None), strict=True):
        assert side <= new
        assert abs(new - side * scale) <= 1
        assert new % 2 == 0 or scale == int(scale)


@pytest.mark.parametrize(
    ("scale", "height", "words"),
    [
        (None, None, "either scale or height"),
        (4, 720, "either scale or height"),
        (0.5, None, "--scale 0.5"),
        (8.1, None, "--scale 8.1"),
        (float("nan"), None, "--scale nan"),
        (None, 0, "--height 0"),
        (None, -2, "--height -2"),
        (None, 721, "--height 721"),
    ],
)
def test_output_size_refuses(scale: float | None, height: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        output_size((100, 180), scale, height)


def test_parse_tile() -> None:
    assert parse_tile("512x256", 64, 64) == (512, 256)
    assert parse_tile(" 96x96 ", 32, 64) == (96, 96)


@pytest.mark.parametrize("text", ["512", "512x", "x512", "512X512", "-64x64", "64.0x64", "0x0", "500x512", "64x512"])
def test_parse_tile_refuses(text: str) -> None:
    with pytest.raises(UserError, match=f"tile '?{text}"):
        parse_tile(text, 64, 64)


SIDES = st.integers(1, 300)


@given(SIDES, SIDES, SIDES, SIDES, st.data())
@settings(max_examples=200)
def test_scale_box_is_the_smallest_cover(h: int, w: int, height: int, width: int, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    box = (x, y, data.draw(st.integers(1, w - x)), data.draw(st.integers(1, h - y)))
    left, top, across, down = scale_box(box, (h, w), (height, width))
    for start, size, low, high, new, extent in (
        (box[0], box[2], w, width, left, across),
        (box[1], box[3], h, height, top, down),
    ):
        assert new == floor(Fraction(start * high, low))
        assert new + extent == ceil(Fraction((start + size) * high, low))
    assert left + across <= width
    assert top + down <= height


def test_scale_box_at_whole_factors() -> None:
    assert scale_box((10, 20, 30, 5), (100, 180), (400, 720)) == (40, 80, 120, 20)
    assert scale_box((10, 20, 30, 5), (100, 180), (100, 180)) == (10, 20, 30, 5)
    assert scale_box((1, 1, 1, 1), (3, 3), (4, 4)) == (1, 1, 2, 2)


# Devices


def test_place_on_the_cpu() -> None:
    model = small_video_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert place(model, "cpu", "fp32") is model
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    place(model, "cpu", "bf16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cpu", "dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "cpu", "attention": "magic"}, "unknown attention 'magic'"),
        ({"device": "cuda:99"}, "CUDA|cuda:99"),
    ],
)
def test_place_refuses(options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        place(small_video_model(), **options)


# Reading


def test_frames_that_are_passed_over_are_not_decoded_to_the_end_once_nobody_wants_them(
    tiny_video: Path, tmp_path: Path
) -> None:
    asked = iter([False, False, True])
    frames = probe(tiny_video).frames
    assert frames is not None and frames > 4
    last = Segment(0, 0, frames - 1, frames, frames - 1, frames, False, False, False, False)
    job = Job(tiny_video, tmp_path / "hd.mp4", probe(tiny_video).size)
    with pytest.raises(Stopped):
        list(read_pieces(job, [last], Watch(), lambda: next(asked)))
    assert [piece.index for piece in read_pieces(job, [last], Watch())] == [frames - 1]
