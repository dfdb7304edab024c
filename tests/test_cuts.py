"""Cuts against clips whose cuts are known: made ones, and real shots joined together."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.cache import find_sources, read_video
from ldm_video.core.tensors import to_signed
from ldm_video.pipeline.cuts import CutDetector, frame_difference
from ldm_video.pipeline.survey import take_survey
from ldm_video.video_io import VideoWriter, probe, read_mask


def texture(seed: int, size: tuple[int, int] = (72, 128)) -> Tensor:
    """Smooth coloured texture ``3 h w`` in [-1, 1], another place for another seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 7, 12, generator=generator)
    colour = torch.rand(1, 3, 1, 1, generator=generator) * 1.6 - 0.8
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
    return (smooth * 0.4 + colour).clamp(-1, 1)[0]


def pan(seed: int, frames: int, step: int = 3) -> list[Tensor]:
    wide = texture(seed, (72, 128 + step * frames))
    return [wide[:, :, i * step : i * step + 128] for i in range(frames)]


def cuts_of(frames: list[Tensor]) -> list[int]:
    detector = CutDetector()
    found = [detector.push(frame) for frame in frames]
    return [cut for cut in (*found, detector.finish()) if cut is not None]


def test_a_cut_is_where_the_second_shot_begins() -> None:
    assert cuts_of(pan(1, 5) + pan(2, 4) + pan(3, 6)) == [5, 9]


def test_one_shot_has_no_cut() -> None:
    assert cuts_of(pan(1, 12, step=8)) == []


def test_a_shot_of_one_frame_at_the_end_is_a_shot() -> None:
    assert cuts_of([*pan(1, 4), texture(2)]) == [4]


def test_a_flash_is_no_cut() -> None:
    frames = pan(1, 9)
    frames[4] = torch.ones_like(frames[4])
    assert cuts_of(frames) == []


def test_fade_and_brightness_are_no_cut() -> None:
    still = texture(1)
    assert cuts_of([still * (1 - k / 12) - k / 12 for k in range(12)]) == []
    assert frame_difference(still, still * 0.7) < frame_difference(still, texture(2))


def test_a_still_frame_differs_from_itself_by_nothing() -> None:
    assert frame_difference(texture(1), texture(1)) == pytest.approx(0, abs=1e-3)


def test_the_survey_of_a_file_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "joined.mkv"
    with VideoWriter(path, (72, 128), None, Fraction(25), codec="ffv1") as writer:
        for frame in pan(1, 6) + pan(2, 5):
            writer.write(frame)
    info = probe(path)
    with read_mask(None, None, info.size, info.frames) as mask:
        assert take_survey(info, mask, lambda frames: None).cuts == (6,)
    with read_mask(None, None, info.size, info.frames) as mask:
        assert take_survey(info, mask, lambda frames: None, find_cuts=False).cuts == ()


def test_real_shots_joined(clips: Path) -> None:
    """Six real shots behind one another: every join is found and nothing else."""
    sources = find_sources(clips / "val")
    shots = [read_video(path, 8) for path in sources]
    frames = [to_signed(torch.from_numpy(np.moveaxis(f, -1, 0).copy())) for shot in shots for f in shot]
    joins = np.cumsum([len(shot) for shot in shots])[:-1].tolist()
    assert cuts_of(frames) == joins
