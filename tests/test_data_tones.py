"""Clips that are turned, and clips in other tones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.clips import ClipDataset
from data.tones import vary_tones
from tests.test_data_clips import texture, write_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4", np.stack([texture(110, 160, 0)] * 4))
    return tmp_path


def test_grey_stays_grey_and_all_frames_change_alike() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)  # t h w c
    for seed in range(20):
        toned = vary_tones(np.concatenate([levels, levels]), np.random.default_rng(seed))
        assert toned.dtype == np.uint8
        assert (toned[..., 0] == toned[..., 1]).all()
        assert (toned[..., 0] == toned[..., 2]).all()
        assert (toned[0] == toned[1]).all()
        assert (np.diff(toned[0, ..., 0].ravel().astype(int)) >= 0).all()  # no tone overtakes a lighter one


def test_tones_are_drawn_in_both_directions() -> None:
    colour = np.tile(np.array([150, 120, 90], np.uint8), (1, 4, 4, 1))
    toned = [vary_tones(colour, np.random.default_rng(seed))[0, 0, 0].astype(int) for seed in range(60)]
    lighter = [bool(pixel.mean() > colour.mean()) for pixel in toned]
    stronger = [bool(np.ptp(pixel) > 60) for pixel in toned]
    assert 10 < sum(lighter) < 50
    assert 10 < sum(stronger) < 50


def test_the_target_is_toned_with_the_input(folder: Path) -> None:
    """Both show the same tones: none is left to be undone."""
    options = {"frames": 2, "size": 64, "degrade": "clean", "masks": {"empty": 1}, "cache": folder / "c"}
    plain, toned = ClipDataset(folder, **options), ClipDataset(folder, tones_share=1.0, **options)
    means = []
    for index in range(12):
        item = toned[index]
        shown = torch.nn.functional.interpolate(item["hr"], scale_factor=0.25, mode="bicubic", antialias=True)
        assert (shown - item["lr"]).abs().mean() < 0.03
        means.append(float(item["hr"].mean() - plain[index]["hr"].mean()))
    assert np.std(means) > 0.02


def test_half_of_the_clips_are_turned(tmp_path: Path) -> None:
    stripes = np.tile(np.where(np.arange(160) // 8 % 2, 200, 50).astype(np.uint8)[:, None], (110, 1, 3))  # h w c
    write_video(tmp_path / "a.mp4", np.stack([stripes] * 4))
    items = ClipDataset(
        tmp_path, frames=2, size=64, degrade="clean", masks={"empty": 1}, cache=tmp_path / "c", turn_share=0.5
    )
    across = [
        bool(abs(items[i]["hr"].diff(dim=-1)).mean() > abs(items[i]["hr"].diff(dim=-2)).mean()) for i in range(40)
    ]
    assert 10 < sum(across) < 30


def test_a_crop_that_is_not_square_is_not_turned(folder: Path) -> None:
    items = ClipDataset(folder, frames=2, size=(32, 64), cache=folder / "c", turn_share=1.0)
    assert items[0]["hr"].shape == (2, 3, 32, 64)
