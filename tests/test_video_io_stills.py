"""Pictures that are not one plain picture: several in a file, and transparent ones."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from ldm_video.core.errors import UserError
from ldm_video.video_io import FrameReader, probe, read_mask
from tests.video_io_support import texture

SIZE = (40, 56)
PICTURES = [(texture(*SIZE, seed=seed) * 255).astype(np.uint8) for seed in range(6)]


def write_animation(path: Path, pictures: list[np.ndarray]) -> Path:
    animation = cv2.Animation()
    animation.frames, animation.durations = pictures, [80] * len(pictures)
    assert cv2.imwriteanimation(str(path), animation)
    return path


def write_several(path: Path) -> Path:
    if path.suffix == ".tif":
        assert cv2.imwritemulti(str(path), PICTURES)
        return path
    return write_animation(path, PICTURES)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "\udcff.png"])  # bytes that are not UTF-8
def test_an_animated_png_is_a_video(tmp_path: Path, name: str) -> None:
    path = write_animation(tmp_path / "in.png", PICTURES).rename(tmp_path / name)
    with FrameReader(path) as reader:
        frames = list(reader)
    assert (reader.info.kind, reader.info.size, reader.info.rate) == ("video", SIZE, Fraction(25, 2))
    assert [frame.pts_seconds for frame in frames] == [i * Fraction(2, 25) for i in range(len(PICTURES))]
    for frame, want in zip(frames, PICTURES, strict=True):
        got = ((frame.pixels + 1) * 127.5).round().permute(1, 2, 0).flip(-1).numpy()
        assert np.array_equal(got, want)


def test_an_animation_of_one_picture_is_a_picture(tmp_path: Path) -> None:
    assert probe(write_animation(tmp_path / "a.png", PICTURES[:1])).kind == "image"


@pytest.mark.parametrize("suffix", [".webp", ".tif"])
def test_several_pictures_that_cannot_be_read_as_a_video(tmp_path: Path, suffix: str) -> None:
    path = write_several(tmp_path / f"a{suffix}")
    for read in (probe, FrameReader, lambda path: read_mask(path, None, SIZE, len(PICTURES))):
        with pytest.raises(UserError, match=f"a{suffix} holds several pictures; save each in a file of its own"):
            read(path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_several_pictures_in_a_folder_of_frames(tmp_path: Path, suffix: str) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), PICTURES[0])
    write_several(tmp_path / f"1{suffix}")
    with pytest.raises(UserError, match=f"1{suffix} holds several pictures"), FrameReader(tmp_path) as reader:
        list(reader)


def test_a_thumbnail_is_no_second_picture(tmp_path: Path) -> None:
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), [PICTURES[0], PICTURES[0][::4, ::4]])
    assert (probe(tmp_path / "a.tif").kind, probe(tmp_path / "a.tif").size) == ("image", SIZE)


def test_an_animated_mask_moves(tmp_path: Path) -> None:
    holes = [np.zeros((*SIZE, 3), np.uint8) for _ in PICTURES]
    for i, hole in enumerate(holes):
        hole[:, 5 * i : 5 * i + 5] = 255
    with read_mask(write_animation(tmp_path / "m.png", holes), None, SIZE, len(holes)) as mask:
        for i, hole in enumerate(holes):
            assert np.array_equal(mask.at(i)[0].numpy(), hole[..., 0] / 255)
        mask.finish(len(holes))
