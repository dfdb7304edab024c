"""Evidence: what is known stays, what lies under the hole is never seen, and the layouts lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from ldm_video.core.evidence import Evidence, EvidenceLayout, build_evidence, pad_evidence, resize
from ldm_video.core.push_pull import push_pull
from tests.model_support import box_hole, clip_evidence, rand_pixels


def pil_bicubic(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """``1 t c h w`` resized channel by channel by Pillow, clipped to [-1, 1]."""
    height, width = size
    planes = [
        np.asarray(Image.fromarray(plane.numpy(), mode="F").resize((width, height), Image.Resampling.BICUBIC))
        for plane in frames.flatten(0, 2)
    ]
    return torch.from_numpy(np.stack(planes)).reshape(*frames.shape[:3], height, width).clamp(-1, 1)


def depth_to_space(cells: Tensor, channels: int, factor: int) -> Tensor:
    """Each output pixel picked by hand."""
    b, t, _, h, w = cells.shape
    out = torch.empty(b, t, channels, h * factor, w * factor)
    for c in range(channels):
        for y in range(factor):
            for x in range(factor):
                out[:, :, c, y::factor, x::factor] = cells[:, :, (c * factor + y) * factor + x]
    return out


def fields_equal(one: Evidence, other: Evidence) -> bool:
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("guess", "hole", "known", "lowres"))


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Low-res frames of any size, and a hole of any shape on a grid 1 to 4 times as large, of odd sizes too."""
    low, frames = draw(SIZES), draw(st.integers(1, 3))
    high = tuple(draw(st.integers(side, 4 * side)) for side in low)
    seed, share = draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    hole = (torch.rand((1, frames, 1, *high), generator=generator) < share).float()
    return rand_pixels(1, frames, 3, *low, seed=seed), hole


@given(cases())
@settings(max_examples=60)
def test_shapes_ranges_and_an_empty_canvas_in_the_hole(case: tuple[Tensor, Tensor]) -> None:
    lowres, hole = case
    evidence = build_evidence(lowres, hole)
    assert evidence.size == tuple(hole.shape[-2:])
    assert evidence.guess.shape[1] == lowres.shape[1]
    assert evidence.guess.shape == (1, lowres.shape[1], 3, *hole.shape[-2:])
    assert evidence.lowres.shape == lowres.shape
    assert torch.equal(evidence.hole, hole)
    assert bool((evidence.guess.abs() <= 1).all())
    assert not bool((evidence.canvas * hole).any())
    assert torch.equal(evidence.canvas * (1 - hole), evidence.guess * (1 - hole))


@given(cases(), st.integers(0, 99))
@settings(max_examples=60)
def test_nothing_under_the_hole_leaks(case: tuple[Tensor, Tensor], seed: int) -> None:
    lowres, hole = case
    (h, w), (height, width) = lowres.shape[-2:], hole.shape[-2:]
    other = lowres.clone()
    for frame in range(lowres.shape[1]):
        for y in range(h):
            for x in range(w):  # every low-res pixel whose area meets the hole gets another colour
                rows = slice(y * height // h, -(-(y + 1) * height // h))
                columns = slice(x * width // w, -(-(x + 1) * width // w))
                if bool(hole[0, frame, 0, rows, columns].any()):
                    other[0, frame, :, y, x] = rand_pixels(3, seed=seed)
    assert fields_equal(build_evidence(lowres, hole), build_evidence(other, hole))


def test_nothing_leaks_around_known_pixels_painted_into_the_hole() -> None:
    lowres, logo = rand_pixels(1, 1, 3, 8, 8), slice(8, 20)
    hole = box_hole(1, (32, 32), logo, logo)
    known, painted = box_hole(1, (32, 32), slice(10, 18), slice(10, 18)), rand_pixels(1, 1, 3, 32, 32, seed=1)
    other = lowres.clone()
    other[..., 2:5, 2:5] = 1.0  # what the logo looked like
    one = build_evidence(lowres, hole, known_pixels=painted, known=known)
    assert fields_equal(one, build_evidence(other, hole, known_pixels=painted, known=known))


def test_no_hole_is_plain_bicubic() -> None:
    lowres = rand_pixels(1, 2, 3, 7, 9)
    for size in ((28, 36), (20, 31), (7, 9)):
        evidence = build_evidence(lowres, torch.zeros(1, 2, 1, *size))
        torch.testing.assert_close(evidence.guess, pil_bicubic(lowres, size), atol=1e-5, rtol=0)
        assert torch.equal(evidence.lowres, lowres)


def test_a_full_hole_is_mid_grey_and_leaves_the_other_frames_alone() -> None:
    lowres = rand_pixels(1, 2, 3, 6, 5)
    hole = torch.zeros(1, 2, 1, 24, 20)
    hole[:, 0] = 1
    evidence = build_evidence(lowres, hole)
    assert not bool(evidence.guess[:, 0].any())
    torch.testing.assert_close(evidence.guess[:, 1:], pil_bicubic(lowres[:, 1:], (24, 20)), atol=1e-5, rtol=0)


def test_away_from_the_hole_the_guess_is_plain_bicubic() -> None:
    lowres, hole = rand_pixels(1, 2, 3, 16, 16), box_hole(2, (64, 64), slice(0, 9), slice(50, 64))  # in a corner
    guess, plain = build_evidence(lowres, hole).guess, pil_bicubic(lowres, (64, 64))
    reach = 4 * 3  # the low-res pixels that the hole touches end at row 12, column 48; bicubic sees two more
    far = torch.ones(64, 64, dtype=torch.bool)
    far[: 12 + reach, 48 - reach :] = False
    torch.testing.assert_close(guess[..., far], plain[..., far], atol=1e-5, rtol=0)
    assert (guess - plain)[..., :9, 50:].abs().mean() > 0.1


def test_known_pixels_win_over_hole_and_lowres() -> None:
    lowres, painted = rand_pixels(1, 1, 3, 4, 4), rand_pixels(1, 1, 3, 16, 16, seed=1)
    hole, known = box_hole(1, (16, 16), slice(4, 12), slice(4, 12)), box_hole(1, (16, 16), slice(0, 8), slice(0, 16))
    evidence = build_evidence(lowres, hole, known_pixels=painted, known=known)
    assert torch.equal(evidence.guess[..., :8, :], painted[..., :8, :])
    assert torch.equal(evidence.canvas[..., :8, :], painted[..., :8, :])
    assert torch.equal(evidence.hole, hole * (1 - known))
    plain = build_evidence(lowres, hole).guess
    assert torch.equal(evidence.guess[..., 8:, :], plain[..., 8:, :])


@given(SIZES, st.integers(0, 99), st.sampled_from([0.1, 0.5, 0.9]))
def test_push_pull_keeps_what_is_known_and_stays_between_its_bounds(
    size: tuple[int, int], seed: int, share: float
) -> None:
    x = rand_pixels(2, 3, *size, seed=seed)
    weight = (torch.rand((2, 1, *size), generator=torch.Generator().manual_seed(seed)) < share).float()
    filled = push_pull(x, weight)
    for frame in range(2):
        known = weight[frame, 0].bool()
        assert torch.equal(filled[frame, :, known], x[frame, :, known])
        if not bool(known.any()):
            assert not bool(filled[frame].any())
            continue
        lowest, highest = x[frame, :, known].min(dim=1).values, x[frame, :, known].max(dim=1).values
        assert bool((filled[frame] >= lowest[:, None, None] - 1e-5).all())
        assert bool((filled[frame] <= highest[:, None, None] + 1e-5).all())


@given(SIZES, st.integers(0, 99))
def test_push_pull_of_a_constant_is_that_constant(size: tuple[int, int], seed: int) -> None:
    weight = (torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(seed)) < 0.3).float()
    weight[..., -1, -1] = 1
    filled = push_pull(torch.full((1, 3, *size), 0.37) * weight, weight)
    torch.testing.assert_close(filled, torch.full_like(filled, 0.37))


def test_push_pull_carries_a_gradient_across_a_hole_smoothly() -> None:
    ramp = torch.linspace(-1, 1, 33).expand(1, 1, 33, 33)
    weight = torch.ones(1, 1, 33, 33)
    weight[..., 10:22, 10:22] = 0
    filled = push_pull(ramp, weight)
    # The mean of the rim would be off by 0.34 at two sides and jump there by 0.41.
    assert (filled - ramp).abs().max() < 0.3
    assert filled.diff(dim=-1).abs().max() < 0.2
    assert filled.diff(dim=-2).abs().max() < 0.2


def test_resize_of_equal_size_returns_its_input() -> None:
    x = rand_pixels(1, 2, 3, 5, 7) * 3
    assert torch.equal(resize(x, (5, 7)), x)
    torch.testing.assert_close(resize(x, (3, 4)), pil_bicubic(x, (3, 4)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("known", [False, True])
def test_pixels_layout_is_the_lowres_frame_exactly_at_x4_on_an_f4_grid(known: bool) -> None:
    lowres, hole = rand_pixels(2, 3, 3, 6, 8), torch.zeros(2, 3, 1, 24, 32)
    hole[..., 8:13, 20:] = 1
    layout = EvidenceLayout("pixels", 4, with_known=known)
    cells = layout(build_evidence(lowres, hole))
    expected_hole = torch.zeros(2, 3, 1, 6, 8)
    expected_hole[..., 2:4, 5:] = 1
    assert cells.shape[2] == layout.channels == (5 if known else 4)
    assert torch.equal(cells[:, :, :3], lowres * (1 - expected_hole))
    assert torch.equal(cells[:, :, 3:4], expected_hole)
    assert not bool(cells[:, :, 4:].any())


def test_pixels_layout_on_another_grid_is_resized() -> None:
    lowres = rand_pixels(1, 2, 3, 8, 12)
    cells = EvidenceLayout("pixels", 8, with_known=False)(build_evidence(lowres, torch.zeros(1, 2, 1, 32, 48)))
    torch.testing.assert_close(cells[:, :, :3], pil_bicubic(lowres, (4, 6)), atol=1e-5, rtol=0)


def test_pixels_layout_shows_known_pixels_without_grey_from_the_hole() -> None:
    hole = box_hole(1, (32, 32), slice(8, 16), slice(8, 16))
    lowres, painted = torch.full((1, 1, 3, 8, 8), -0.5), torch.full((1, 1, 3, 32, 32), -0.5)
    cells = EvidenceLayout("pixels", 4)(build_evidence(lowres, hole, known_pixels=painted, known=1 - hole))
    expected_hole = torch.zeros(1, 1, 1, 8, 8)
    expected_hole[..., 2:4, 2:4] = 1
    torch.testing.assert_close(cells[:, :, :3], -0.5 * (1 - expected_hole).expand(1, 1, 3, 8, 8))
    assert torch.equal(cells[:, :, 3:], torch.cat([expected_hole, 1 - expected_hole], dim=2))


def test_pixels_layout_calls_a_cell_known_only_where_all_of_it_is() -> None:
    known = box_hole(1, (16, 16), slice(0, 7), slice(0, 16))
    evidence = build_evidence(
        torch.zeros(1, 1, 3, 4, 4), torch.zeros(1, 1, 1, 16, 16), known_pixels=torch.ones(1, 1, 3, 16, 16), known=known
    )
    rows = EvidenceLayout("pixels", 4)(evidence)[0, 0, 4].mean(dim=1)
    assert rows.tolist() == [1, 0, 0, 0]


def test_pixels_layout_shows_known_pixels_and_not_the_lowres_frame_below_them() -> None:
    """White on black: rows of cells 0 to 4 are known, and the first three are resized from nothing else."""
    known = box_hole(1, (32, 32), slice(0, 20), slice(0, 32))
    evidence = build_evidence(
        torch.full((1, 1, 3, 8, 8), -1.0), 0 * known, known_pixels=torch.ones(1, 1, 3, 32, 32), known=known
    )
    rgb = EvidenceLayout("pixels", 4)(evidence)[0, 0, :3]
    assert torch.equal(rgb[:, 5:], torch.full((3, 3, 8), -1.0))
    torch.testing.assert_close(rgb[:, :3], torch.ones(3, 3, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.parametrize("factor", [2, 3, 8])
def test_space_to_depth_layout_holds_every_pixel(factor: int, with_known: bool) -> None:
    size = (24, 48)
    hole, known = box_hole(2, size, slice(3, 9), slice(0, 7)), box_hole(2, size, slice(12, 20), slice(5, 40))
    painted = rand_pixels(1, 2, 3, *size, seed=1)
    evidence = build_evidence(rand_pixels(1, 2, 3, 7, 11), hole, known_pixels=painted, known=known)
    layout = EvidenceLayout("space_to_depth", factor, with_known)
    cells, channels = layout(evidence), 5 if with_known else 4
    assert cells.shape == (1, 2, channels * factor**2, 24 // factor, 48 // factor)
    assert layout.channels == cells.shape[2]
    expected = torch.cat([evidence.guess, hole, known], dim=2)[:, :, :channels]
    assert torch.equal(depth_to_space(cells, channels, factor), expected)


def test_layout_refuses_a_size_off_the_grid_and_an_unknown_kind() -> None:
    evidence = build_evidence(torch.zeros(1, 1, 3, 5, 5), torch.zeros(1, 1, 1, 20, 20))
    for kind in ("pixels", "space_to_depth"):
        with pytest.raises(ValueError, match="20x20"):
            EvidenceLayout(kind, 8)(evidence)
    with pytest.raises(ValueError, match="depth_map"):
        EvidenceLayout("depth_map")


def test_crop_on_whole_lowres_pixels_is_a_slice_of_everything() -> None:
    evidence = clip_evidence(3, (8, 12))
    part = evidence.crop(slice(1, 3), slice(4, 24), slice(8, 48))
    for name in ("guess", "hole", "known"):
        assert torch.equal(getattr(part, name), getattr(evidence, name)[:, 1:3, :, 4:24, 8:48])
    assert torch.equal(part.lowres, evidence.lowres[:, 1:3, :, 1:6, 2:12])
    assert fields_equal(evidence.crop(slice(None), slice(None), slice(None)), evidence)


def test_crop_between_lowres_pixels_resizes_the_cut() -> None:
    evidence = clip_evidence(1, (8, 12))
    part = evidence.crop(slice(None), slice(2, 22), slice(0, 48))
    assert torch.equal(part.guess, evidence.guess[..., 2:22, :])
    torch.testing.assert_close(part.lowres, pil_bicubic(evidence.guess[..., 2:22, :], (5, 12)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("bottom", "height"), [(22, 5), (24, 6), (25, 6)])
def test_a_crop_between_lowres_pixels_has_the_nearest_whole_number_of_them(bottom: int, height: int) -> None:
    """At an enlargement by 4, 20, 22 and 23 rows or columns are 5, 5.5 and 5.75 low-res ones."""
    evidence = clip_evidence(1, (8, 12))
    assert evidence.crop(slice(None), slice(2, bottom), slice(0, 48)).lowres.shape[-2:] == (height, 12)
    assert evidence.crop(slice(None), slice(0, 32), slice(2, bottom)).lowres.shape[-2:] == (8, height)


def test_a_crop_laid_out_is_the_layout_cropped() -> None:
    evidence = clip_evidence(2, (8, 12))
    for kind in ("pixels", "space_to_depth"):
        layout = EvidenceLayout(kind, 4)
        part = layout(evidence.crop(slice(0, 1), slice(8, 32), slice(16, 40)))
        assert torch.equal(part, layout(evidence)[:, :1, :, 2:8, 4:10])


@given(SIZES, st.integers(1, 4), st.sampled_from([1, 8, 16]))
@settings(max_examples=40)
def test_padding_reaches_the_multiple_and_keeps_the_picture(low: tuple[int, int], scale: int, multiple: int) -> None:
    size = (low[0] * scale, low[1] * scale)
    evidence = build_evidence(rand_pixels(1, 1, 3, *low), box_hole(1, size, slice(0, 1), slice(0, 1)))
    padded = pad_evidence(evidence, multiple)
    for side, old in zip(padded.size, size, strict=True):
        assert side % multiple == 0
        assert 0 <= side - old < multiple
    for name in ("guess", "hole", "known"):
        whole, part = getattr(padded, name), getattr(evidence, name)
        assert torch.equal(whole[..., : size[0], : size[1]], part)
        assert torch.equal(whole[..., -1, : size[1]], part[..., -1, :])
        assert torch.equal(whole[..., : size[0], -1], part[..., -1])
    if all((side - old) % scale == 0 for side, old in zip(padded.size, size, strict=True)):
        assert torch.equal(padded.lowres[..., : low[0], : low[1]], evidence.lowres)
        assert torch.equal(padded.lowres[..., -1, : low[1]], evidence.lowres[..., -1, :])


def test_padding_keeps_lowres_and_canvas_in_step() -> None:
    padded = pad_evidence(clip_evidence(1, (25, 45)), 64)  # 100 x 180, as the demo's clip
    assert padded.size == (128, 192)
    assert tuple(padded.lowres.shape[-2:]) == (32, 48)


@pytest.mark.parametrize(("low", "size"), [((360, 24), (1080, 72)), ((288, 36), (540, 60)), ((45, 40), (67, 100))])
def test_padding_keeps_both_grids_on_each_other(low: tuple[int, int], size: tuple[int, int]) -> None:
    """Whatever the enlargement: what lies at a place of one grid lies at the same place of the other."""
    down = (torch.arange(low[0]) + 0.5) / low[0] * 1.6 - 0.8
    across = (torch.arange(low[1]) + 0.5) / low[1] * 0.2
    lowres = (down[:, None] - across).expand(1, 1, 3, *low)
    padded = pad_evidence(build_evidence(lowres, torch.zeros(1, 1, 1, *size)), 32)
    assert padded.size != size
    inside = (..., slice(8, size[0] - 8), slice(8, size[1] - 8))  # the repeated edge is not even
    off = (resize(padded.lowres, padded.size) - padded.guess)[inside].abs().max()
    assert off < 0.2 * 1.6 / size[0]  # a fifth of an output pixel


def test_map_reaches_every_tensor() -> None:
    moved = clip_evidence(2, (4, 4)).map(lambda x: x.to(torch.float64))
    assert {moved.guess.dtype, moved.hole.dtype, moved.known.dtype, moved.lowres.dtype} == {torch.float64}
