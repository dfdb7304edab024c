"""What no frame shows is invented once and carried along; narrow holes are left to the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.config.load import load_config
from ldm_video.core.evidence import Evidence
from ldm_video.models.video_model import VideoModel
from ldm_video.pipeline.arguments import DEFAULTS
from ldm_video.pipeline.closing import close_hole
from ldm_video.pipeline.exemplars import complete
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.restoration import make_settings
from tests.model_support import small_text_model, small_video_model
from tests.test_propagation import SIZE, landscape, paint, pan

SCALE = 2
LARGE = (SIZE[0] * SCALE, SIZE[1] * SCALE)


def holes(frames: int, rows: slice, columns: slice, scale: int = SCALE) -> Tensor:
    """``t 1 H W`` of the enlarged size, a box given in low-res pixels."""
    hole = torch.zeros(frames, 1, SIZE[0] * scale, SIZE[1] * scale)
    hole[..., rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale] = 1
    return hole


WIDE = (slice(24, 48), slice(40, 70))
NARROW = (slice(10, 16), slice(5, 100))


def still(frames: int) -> Tensor:
    return torch.from_numpy(landscape(*SIZE)).permute(2, 0, 1).repeat(frames, 1, 1, 1) * 2 - 1


def test_wide_parts_are_closed_and_narrow_ones_left() -> None:
    frames, wide, narrow = still(3), holes(3, *WIDE), holes(3, *NARROW)
    hole = torch.maximum(wide, narrow)
    closed, left = close_hole(frames, hole)
    assert torch.equal(left, narrow)
    changed = (closed != frames).any(dim=1)  # t h w
    assert bool(changed[:, WIDE[0], WIDE[1]].float().mean() > 0.99)
    changed[:, WIDE[0].start - 1 : WIDE[0].stop + 1, WIDE[1].start - 1 : WIDE[1].stop + 1] = False
    assert not changed.any()


def test_only_narrow_parts_are_nothing_to_do() -> None:
    frames, hole = still(3), holes(3, *NARROW)
    closed, left = close_hole(frames, hole)
    assert torch.equal(closed, frames) and torch.equal(left, hole)


def test_no_paint_gets_in() -> None:
    """Neither the hole's own nor that of a narrow part beside it is ever read."""
    hole = torch.maximum(holes(3, *WIDE), holes(3, *NARROW))
    low = hole[..., ::SCALE, ::SCALE]
    results = [close_hole(torch.where(low.bool(), colour, still(3)), hole)[0] for colour in (-1.0, 1.0)]
    wide = holes(3, *WIDE, scale=1).bool()
    pair = [made[wide.expand_as(made)] for made in results]
    assert torch.allclose(*pair, atol=1e-3)  # carrying reads at positions that are whole to a few decimals


def test_what_is_smeared_over_the_rim_is_not_read_either() -> None:
    """Resizing and compression mix a low-res pixel beside the hole with what is hidden."""
    hole = holes(2, *WIDE)
    around = F.max_pool2d(holes(2, *WIDE, scale=1), 3, stride=1, padding=1).bool()
    results = [close_hole(torch.where(around, colour, still(2)), hole)[0] for colour in (-1.0, 1.0)]
    torch.testing.assert_close(*results, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("rows", "columns", "wide"),
    [
        (slice(24, 48), slice(0, 7), True),
        (slice(SIZE[0] - 7, SIZE[0]), slice(30, 60), True),
        (slice(24, 48), slice(30, 37), False),
    ],
    ids=["at the left", "at the bottom", "inside"],
)
def test_a_hole_at_the_border_goes_on_beyond_it(rows: slice, columns: slice, wide: bool) -> None:
    """Seven pixels wide: inside the frame the rim is 4 pixels away at most, at its border 7."""
    hole = holes(2, rows, columns)
    _, left = close_hole(still(2), hole)
    assert torch.equal(left, torch.zeros_like(hole) if wide else hole)


def test_the_invention_moves_with_the_camera() -> None:
    step, frames = 3, 6
    clip, hole = pan(frames, step), holes(frames, *WIDE)
    low = hole[..., ::SCALE, ::SCALE]
    closed, left = close_hole(paint(clip, low), hole)
    assert not left.any()

    def unrest(made: Tensor) -> float:
        """How much the middle of the hole changes from frame to frame when it is followed."""
        rows, columns = slice(30, 42), slice(46, 60)
        moved = [made[t + 1, :, rows.start - 1 : rows.stop - 1, columns.start - step : columns.stop - step] for t in
                 range(frames - 1)]  # fmt: skip
        return sum((made[t, :, rows, columns] - m).abs().mean().item() for t, m in enumerate(moved)) / (frames - 1)

    one_by_one = torch.stack([complete(frame, mask) for frame, mask in zip(clip, low, strict=True)])
    assert unrest(closed) < 0.5 * unrest(one_by_one)


def test_what_was_shown_goes_on() -> None:
    frames, hole = still(4), holes(4, *WIDE)
    low = hole[..., ::SCALE, ::SCALE]
    first, _ = close_hole(paint(frames, low), hole)
    other = torch.roll(frames, 17, dims=-1)  # something that this segment would not have invented by itself
    shown = torch.nn.functional.interpolate(other[:2], scale_factor=SCALE, mode="nearest")
    going_on, left = close_hole(paint(frames, low), hole, shown)
    assert not left.any()
    where = low.bool().expand_as(frames)

    def away(made: Tensor) -> float:
        return (made - other)[where].abs().mean().item()

    assert away(going_on) < 0.7 * away(first)
    assert torch.allclose(going_on[0][where[0]], going_on[3][where[3]], atol=0.05)  # and it stands still


def test_what_was_shown_in_another_light_goes_on_in_this_one() -> None:
    frames, hole = still(2) / 2, holes(2, *WIDE)
    shown = F.interpolate(frames.roll(17, dims=-1), scale_factor=SCALE, mode="nearest")
    one, other = (close_hole(frames, hole, shown + light)[0] for light in (0.0, 0.3))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shown", [False, True], ids=["at first", "after another segment"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_hole_that_is_everything_becomes_grey(frames: int, shown: bool) -> None:
    hole = torch.ones(frames, 1, *LARGE)
    closed, left = close_hole(still(frames), hole, torch.zeros(1, 3, *LARGE) if shown else None)
    assert not left.any() and closed.abs().max() < 1e-6


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return small_video_model()


class Recorder(Restorer):
    """Keeps the evidence that the decoder gets."""

    def _decode(self, latents: Tensor, evidence: Evidence) -> Tensor:
        self.seen = evidence
        return super()._decode(latents, evidence)


def test_the_model_sees_patches_as_evidence(model: VideoModel) -> None:
    hole = holes(2, *WIDE)
    low = hole[..., ::SCALE, ::SCALE]
    frames = paint(still(2), low)
    seen = {}
    for fill in ("model", "patches"):
        restorer = Recorder(model, RestoreSettings(steps=1, fill=fill, colour="none"))
        restorer(frames, hole, range(2))
        seen[fill] = restorer.seen
    assert seen["model"].hole.any() and not seen["patches"].hole.any() and not seen["patches"].known.any()
    closed, _ = close_hole(frames, hole)
    assert torch.allclose(seen["patches"].lowres[0, :, :, : SIZE[0], : SIZE[1]], closed, atol=1e-6)


def test_inpainting_alone_takes_patches_as_they_are(model: VideoModel) -> None:
    hole = holes(2, *WIDE, scale=1)
    frames = paint(still(2), hole)
    restorer = Restorer(model, RestoreSettings(steps=1, fill="patches", feather=4))
    output = restorer(frames, hole, range(2))
    assert torch.allclose(output, close_hole(frames, hole)[0], atol=1e-6)


def test_where_a_model_takes_a_prompt_it_fills(model: VideoModel, tmp_path: Path) -> None:
    text_model, config = small_text_model(tmp_path), load_config(DEFAULTS)
    assert [make_settings(config, m).fill for m in (model, text_model)] == ["patches", "model"]
    for given in ("patches", "model"):
        config.fill = given
        assert [make_settings(config, m).fill for m in (model, text_model)] == [given, given]
