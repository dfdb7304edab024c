"""Cuts: told one frame late at most; fades, dissolves, flashes and pans are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_video.pipeline.cuts import THRESHOLD, CutDetector, _difference, _thumbnail, _visible
from ldm_video.video_io import FrameReader
from tests.video_io_support import texture

TINTS = ((1.0, 0.55, 0.3), (0.3, 0.6, 1.0), (0.5, 0.9, 0.35))


def scene(seed: int, frames: int, step: int = 2, size: tuple[int, int] = (96, 160)) -> list[Tensor]:
    """A pan of ``step`` pixels a frame over a tinted texture; every seed is another place in another light."""
    wide = texture(size[0], size[1] + step * frames, seed) * np.array(TINTS[seed % 3])
    picture = torch.from_numpy(wide).permute(2, 0, 1).float() * 2 - 1  # 3 h w
    return [picture[..., step * i : step * i + size[1]] for i in range(frames)]


def find(frames: Sequence[Tensor], holes: Sequence[Tensor] | None = None) -> list[int]:
    """Numbers of frames that begin a shot, each checked to come with the frame after it, not later."""
    detector, cuts = CutDetector(), []
    for index, frame in enumerate(frames):
        if (cut := detector.push(frame, None if holes is None else holes[index])) is not None:
            assert cut == index - 1
            cuts.append(cut)
    last = detector.finish()
    return cuts if last is None else [*cuts, last]


def test_scenes_joined_are_cut_where_they_are_joined() -> None:
    assert find([*scene(0, 6), *scene(1, 5), *scene(2, 7)]) == [6, 11]


def test_a_cut_on_the_very_last_frame_and_one_frame_shots() -> None:
    assert find([*scene(0, 4), *scene(1, 1)]) == [4]
    assert find([*scene(0, 1), *scene(1, 3)]) == [1]
    assert find([*scene(0, 4), *scene(1, 1), *scene(2, 4)]) == [4, 5]
    assert find(scene(0, 1)) == []
    assert find([]) == []


def test_no_frame_is_told_of_twice() -> None:
    detector = CutDetector()
    told = [detector.push(frame) for frame in [*scene(0, 3), *scene(1, 2)]]
    assert told == [None, None, None, None, 3]
    assert detector.finish() is None


@pytest.mark.parametrize("level", [1.0, -1.0])
def test_one_bright_or_dark_frame_is_no_cut(level: float) -> None:
    frames = scene(0, 9)
    frames[4] = torch.full_like(frames[4], level)
    assert find(frames) == []


def test_a_flash_that_stays_is_a_cut() -> None:
    frames = scene(0, 9)
    assert find([*frames[:4], *[torch.ones_like(frames[0])] * 5]) == [4]


@pytest.mark.parametrize("length", [8, 16])
def test_fades_through_black_are_no_cuts(length: int) -> None:
    frames, gains = scene(0, 2 * length), torch.cat([torch.linspace(1, 0, length), torch.linspace(0, 1, length)])
    assert find([(frame + 1) * gain - 1 for frame, gain in zip(frames, gains, strict=True)]) == []


def test_a_dissolve_is_no_cut() -> None:
    first, second, shares = scene(0, 16), scene(1, 16), torch.linspace(0, 1, 16)
    assert find([torch.lerp(a, b, share) for a, b, share in zip(first, second, shares, strict=True)]) == []


def test_a_whip_pan_is_no_cut() -> None:
    assert find(scene(0, 12, step=32)) == []  # a fifth of the picture's width in every frame


@pytest.mark.parametrize("backwards", [False, True])
def test_a_pan_to_or_from_a_bare_middle_is_no_cut(backwards: bool) -> None:
    """By a quarter of the picture's width; the middle is found in the other picture in one direction only."""
    world = torch.zeros(3, 72, 160)
    world[..., 96:] = scene(0, 1, size=(72, 64))[0]
    world[..., 128:] = scene(1, 1, size=(72, 32))[0]  # in another light
    frames = [*[world[..., :128]] * 3, *[world[..., 32:]] * 3]
    assert find(frames[::-1] if backwards else frames) == []


def test_a_frame_differs_from_itself_in_nothing_and_not_by_its_brightness_alone() -> None:
    frame = scene(0, 1)[0]
    here, darker, elsewhere = (_thumbnail(picture) for picture in (frame, frame * 0.8 - 0.2, scene(1, 1)[0]))
    assert _difference(here, here) == pytest.approx(0, abs=0.01)
    assert _difference(here, darker) < THRESHOLD < _difference(here, elsewhere)


# Holes.


def box(share: float, place: str = "middle", size: tuple[int, int] = (96, 160), scale: int = 2) -> Tensor:
    """A box that covers ``share`` of the picture, ``1 H W`` on a grid ``scale`` times as fine."""
    height, width = (round(side * scale * share**0.5) for side in size)
    rows, columns = (size[0] * scale - height, size[1] * scale - width)
    top, left = (rows // 2, columns // 2) if place == "middle" else (rows, columns)
    hole = torch.zeros(1, size[0] * scale, size[1] * scale)
    hole[:, top : top + height, left : left + width] = 1
    return hole


def under(hole: Tensor, frames: Sequence[Tensor], hidden: Sequence[Tensor]) -> list[Tensor]:
    """``frames`` with other pictures in the hole."""
    inside = hole[:, ::2, ::2] > 0
    return [torch.where(inside, other, frame) for frame, other in zip(frames, hidden, strict=True)]


@pytest.mark.parametrize("place", ["middle", "corner"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_what_changes_in_a_hole_is_no_cut(share: float, place: str) -> None:
    hole, hidden = box(share, place), [*scene(1, 5), *scene(2, 6)]
    assert find(under(hole, scene(0, 11), hidden), [hole] * 11) == []


@pytest.mark.parametrize("place", ["middle", "corner"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_cuts_beside_a_hole_are_found(share: float, place: str) -> None:
    """Whether what is in it stays or not."""
    hole, frames = box(share, place), [*scene(0, 6), *scene(1, 5), *scene(2, 7)]
    for hidden in ([torch.full_like(frames[0], 0.3)] * 18, scene(1, 18), frames):
        assert find(under(hole, frames, hidden), [hole] * 18) == [6, 11]


def test_a_hole_changes_nothing_by_what_is_in_it() -> None:
    frames, hole = [scene(seed, 1)[0] for seed in range(3)], box(0.4)
    beside = _visible(hole, frames[0].shape[-2:])
    first, second, third = (_thumbnail(frame, beside) for frame in (*frames[:2], *under(hole, frames[:1], frames[2:])))
    assert _difference(first, second) == _difference(third, second) > THRESHOLD
    assert _difference(first, third) == pytest.approx(0, abs=0.01)


def test_a_hole_that_moves_and_one_that_comes_and_goes() -> None:
    frames = [*scene(0, 6), *scene(1, 6)]
    moving = [box(0.2).roll(24 * i - 144, dims=-1) for i in range(12)]
    blinking = [box(0.3) if i % 2 else torch.zeros(1, 192, 320) for i in range(12)]
    for holes in (moving, blinking):
        hidden = [torch.rand(3, 96, 160, generator=torch.Generator().manual_seed(i)) for i in range(12)]
        shown = [under(hole, [frame], [other])[0] for hole, frame, other in zip(holes, frames, hidden, strict=True)]
        assert find(shown, holes) == [6]


def test_frames_that_are_hidden_whole_are_passed_over() -> None:
    frames, nothing, everything = [*scene(0, 6), *scene(1, 6)], torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    assert find(frames, [everything] * 12) == []
    assert find(frames, [everything if i in (4, 5, 6) else nothing for i in range(12)]) == [7]
    assert find(frames, [everything if i == 7 else nothing for i in range(12)]) == [6]  # it could not deny it
    assert find(frames[:6], [everything if i in (2, 3) else nothing for i in range(6)]) == []


def test_a_still_hole_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr("ldm_video.pipeline.cuts._visible", lambda hole, size: looks.append(size))
    find(scene(0, 9), [box(0.3)] * 9)
    assert len(looks) == 1


def _head(path: Path, count: int = 3) -> Iterator[Tensor]:
    with FrameReader(path, deinterlace="off") as reader:
        yield from (frame.pixels for frame in islice(reader, count))


def test_real_shots_joined_are_cut_there_and_nowhere_else(clips: Path) -> None:
    shots = [list(_head(path)) for path in sorted((clips / "val").glob("*.mp4"))]
    assert find([frame for shot in shots for frame in shot]) == [3 * i for i in range(1, len(shots))]
