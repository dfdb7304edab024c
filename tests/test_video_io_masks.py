"""Masks: every source, in step with the clip; white fills."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ldm_video.core.errors import UserError
from ldm_video.video_io import parse_box, read_mask
from tests.video_io_support import write_clip

SIZE = (48, 64)


def bar(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A white column, 16 wide, that moves 4 pixels a frame: ``h w`` bool."""
    mask = np.zeros(size, bool)
    mask[:, 4 * index : 4 * index + 16] = True
    return mask


def write_png(path: Path, mask: np.ndarray, white: int = 255) -> Path:
    cv2.imwrite(str(path), mask.astype(np.uint8) * white)
    return path


def write_mask_video(path: Path, frames: int) -> Path:
    pictures = [np.repeat(bar(i)[..., None], 3, 2).astype(float) for i in range(frames)]
    return write_clip(path, pictures, rate=Fraction(25))


def write_mask_folder(path: Path, frames: int) -> Path:
    path.mkdir()
    for i in range(frames):
        write_png(path / f"{i}.png", bar(i))
    return path


def test_image_holds_for_the_whole_clip(tmp_path: Path) -> None:
    source = read_mask(write_png(tmp_path / "m.png", bar(3)), None, SIZE, 1000)
    for index in (0, 1, 999):
        mask = source.at(index)
        assert mask.shape == (1, *SIZE) and mask.dtype == torch.float32
        assert (mask[0].numpy() == bar(3)).all()
    source.finish(1000)


@pytest.mark.parametrize("value", [127, 128])
def test_threshold(tmp_path: Path, value: int) -> None:
    source = read_mask(write_png(tmp_path / "m.png", np.ones(SIZE), white=value), None, SIZE, 5)
    assert source.at(0).unique().tolist() == [float(value >= 128)]


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_moving_mask_in_step(tmp_path: Path, kind: str) -> None:
    path = write_mask_video(tmp_path / "m.mp4", 12) if kind == "video" else write_mask_folder(tmp_path / "m", 12)
    with read_mask(path, None, SIZE, 12) as source:
        for index in [*range(12), 11, 4, 5]:  # overlapping windows ask again
            assert (source.at(index)[0].numpy() == bar(index)).all()
        source.finish(12)


def test_one_frame_video_and_folder_hold(tmp_path: Path) -> None:
    for path in (write_mask_video(tmp_path / "m.mkv", 1), write_mask_folder(tmp_path / "m", 1)):
        with read_mask(path, None, SIZE, 30) as source:
            assert (source.at(29)[0].numpy() == bar(0)).all()
            source.finish(30)


def test_other_size_is_nearest_neighbour(tmp_path: Path) -> None:
    small = np.zeros((12, 16), bool)
    small[3:6, 5:9] = True
    source = read_mask(write_png(tmp_path / "m.png", small), None, SIZE, None)
    assert (source.at(0)[0].numpy() == np.kron(small, np.ones((4, 4), bool))).all()
    half = read_mask(write_png(tmp_path / "h.png", bar(2)), None, (24, 32), None).at(0)
    assert half.shape == (1, 24, 32) and set(half.unique().tolist()) == {0.0, 1.0}
    assert half.mean().item() == pytest.approx(bar(2).mean())


@pytest.mark.parametrize("times", [3, 5])
def test_a_larger_mask_is_read_in_the_middle_of_each_pixel(tmp_path: Path, times: int) -> None:
    """Its upper left corner would move the hole by half a pixel."""
    middles = np.kron(~bar(2), np.ones((times, times), bool))
    middles[times // 2 :: times, times // 2 :: times] = bar(2)
    source = read_mask(write_png(tmp_path / "m.png", middles), None, SIZE, None)
    assert (source.at(0)[0].numpy() == bar(2)).all()


@pytest.mark.parametrize("kind", ["video", "folder"])
@pytest.mark.parametrize(("mask", "clip"), [(5, 8), (8, 5)])
def test_length_mismatch_is_seen_at_once(tmp_path: Path, kind: str, mask: int, clip: int) -> None:
    path = write_mask_video(tmp_path / "m.mp4", mask) if kind == "video" else write_mask_folder(tmp_path / "m", mask)
    with pytest.raises(UserError, match=f"has {mask} frames but the clip has {clip}"):
        read_mask(path, None, SIZE, clip)


def test_short_mask_of_unknown_length_is_seen_when_it_ends(tmp_path: Path) -> None:
    source = read_mask(write_mask_video(tmp_path / "m.mkv", 5), None, SIZE, None)  # Matroska counts no frames
    assert (source.at(4)[0].numpy() == bar(4)).all()
    with pytest.raises(UserError, match="has 5 frames but the clip has at least 6"):
        source.at(5)


def test_long_mask_of_unknown_length_is_seen_at_the_end(tmp_path: Path) -> None:
    source = read_mask(write_mask_video(tmp_path / "m.mkv", 8), None, SIZE, None)
    source.at(4)
    with pytest.raises(UserError, match="has 8 frames but the clip has 5"):
        source.finish(5)


def test_truncated_clip_keeps_its_mask(tmp_path: Path) -> None:
    """The clip announced 8 frames and only 6 decode: the mask of 8 is right."""
    source = read_mask(write_mask_folder(tmp_path / "m", 8), None, SIZE, 8)
    source.at(5)
    source.finish(6)


def test_boxes_and_their_union_with_an_image(tmp_path: Path) -> None:
    want = np.zeros(SIZE, bool)
    want[8:18, 50:64] = True  # clipped at the right border
    want[0:3, 0:5] = True  # clipped at the corner
    source = read_mask(None, [(50, 8, 40, 10), (-5, -2, 10, 5)], SIZE, 9)
    assert (source.at(8)[0].numpy() == want).all()
    both = read_mask(write_png(tmp_path / "m.png", bar(1)), (50, 8, 40, 10), SIZE, 9).at(0)
    want = bar(1)
    want[8:18, 50:64] = True
    assert (both[0].numpy() == want).all()


def test_nothing_given_is_nothing_to_fill() -> None:
    source = read_mask(None, None, SIZE, 3)
    assert source.at(2).sum() == 0
    source.finish(3)


@pytest.mark.parametrize(("text", "box"), [("1,2,3,4", (1, 2, 3, 4)), (" -5, 0 ,10,7 ", (-5, 0, 10, 7))])
def test_parse_box(text: str, box: tuple[int, int, int, int]) -> None:
    assert parse_box(text) == box


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1.5,2,3,4", "1,2,0,4", "1,2,3,-4"])
def test_bad_boxes(text: str) -> None:
    with pytest.raises(UserError, match="box"):
        parse_box(text)


@pytest.mark.parametrize("box", [(64, 0, 5, 5), (0, 48, 5, 5), (-5, 0, 5, 5)])
def test_box_outside_the_frame(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(UserError, match="outside the 64x48 frame"):
        read_mask(None, box, SIZE, 3)


def test_real_masks(clips: Path) -> None:
    folder = clips / "masks" / "davis-goat"
    files = sorted(folder.glob("*.png"))
    truth = cv2.imread(str(files[7]), cv2.IMREAD_GRAYSCALE) >= 128
    with read_mask(folder, None, truth.shape, len(files)) as source:
        assert (source.at(7)[0].numpy() == truth).all()
