"""What teaches sharp pictures: drawings over photographs, a preference for detail, frames that a codec had seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import data.clips
from data.clips import ClipDataset
from data.degrade import degrade
from data.drawings import DRAWINGS, Drawing, draw_over
from tests.data_support import same
from tests.test_data_clips import dataset, folder, texture, write_video

__all__ = ["folder"]  # a fixture


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_a_drawing_covers_some_of_the_picture_in_most_draws(drawing: Drawing) -> None:
    photo = texture(120, 160, 0)
    shares = []
    for seed in range(20):
        pictures = [photo.copy() for _ in range(2)]
        for picture in pictures:
            drawing(picture, np.random.default_rng(seed))
        assert np.array_equal(*pictures)
        shares.append((pictures[0] != photo).any(-1).mean())
    assert 0.02 < np.mean(shares) < 0.9
    assert np.mean(np.array(shares) > 0) > 0.6


def test_a_photo_is_not_drawn_on_itself() -> None:
    photo = texture(120, 160, 0)
    before = photo.copy()
    drawn = [draw_over(photo, np.random.default_rng(seed)) for seed in range(10)]
    assert np.array_equal(photo, before)
    assert all(picture.shape == photo.shape and picture.dtype == np.uint8 for picture in drawn)
    assert sum(not np.array_equal(picture, photo) for picture in drawn) >= 8


def test_photographs_alone_are_drawn_over(folder: Path) -> None:
    plain, drawn = (dataset(folder, photo_share=0.5, drawing_share=share) for share in (0.0, 1.0))
    changed = {"photo": 0, "video": 0}
    for one, two in ((plain[i], drawn[i]) for i in range(20)):
        assert one["name"] == two["name"]
        changed["photo" if one["name"] == "photo.png" else "video"] += not same(one, two)
    assert changed["photo"] >= 5
    assert changed["video"] == 0


def test_sharp_sources_are_drawn_more_often(tmp_path: Path) -> None:
    for name, contrast in (("soft.mp4", 0.1), ("sharp.mp4", 1.0)):
        picture = 128 + contrast * (texture(110, 160, 0).astype(float) - 128)
        write_video(tmp_path / name, np.stack([picture.astype(np.uint8)] * 4))
    equal = ClipDataset(tmp_path, frames=2, size=64, cache=tmp_path / "c")
    assert equal.shares.tolist() == [0.5, 0.5]
    sharp, soft = ClipDataset(tmp_path, frames=2, size=64, cache=tmp_path / "c", detail_power=0.5).shares
    assert sharp / soft == pytest.approx(10, rel=0.15)  # the root of a hundredfold energy


def test_a_codec_sees_frames_around_those_of_an_item(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def watched(clip: torch.Tensor, *arguments: object) -> torch.Tensor:
        made.append(degrade(clip, *arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(data.clips, "degrade", watched)
    items = dataset(folder, frames=2, around=3, degrade="clean", masks={"empty": 1})
    places = set()
    for index in range(30):
        item = items[index]
        assert item["hr"].shape == (2, 3, 64, 64)
        assert item["hole"].shape == (2, 1, 64, 64)
        shown = torch.nn.functional.interpolate(item["hr"], scale_factor=0.25, mode="bicubic", antialias=True)
        assert (shown - item["lr"]).abs().mean() < 0.03  # of the same moments; borders differ
        whole = made[-1][..., 4:-4, 4:-4]  # less the margin
        assert len(whole) == 5
        places |= {at for at in range(4) if torch.equal(whole[at : at + 2], item["lr"])}
    assert places == {0, 1, 2, 3}


def test_a_short_video_has_fewer_frames_around_a_clip(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.stack([texture(110, 160, 0)] * 3))
    item = ClipDataset(tmp_path, frames=2, size=64, cache=tmp_path / "c", around=8)[0]
    assert item["hr"].shape == (2, 3, 64, 64)
