"""Interlaced sources: found by their pixels, undone by bwdif, one frame for one frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ldm_video.video_io import FrameReader, probe
from ldm_video.video_io.interlace import decide, detect_field_order
from tests.video_io_support import pan, weave, write_clip

FIELDS = 40


def read(path: Path, deinterlace: str) -> tuple[list[np.ndarray], list[Fraction], FrameReader]:
    with FrameReader(path, deinterlace=deinterlace) as reader:
        frames = list(reader)
    return [((f.pixels + 1) / 2).permute(1, 2, 0).numpy() for f in frames], [f.pts_seconds for f in frames], reader


def distance(frames: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.square(a - b).mean() for a, b in zip(frames, truth, strict=True)]))


@pytest.mark.parametrize("top_first", [True, False])
@pytest.mark.parametrize("flagged", [True, False])
def test_woven_fields_are_found_with_their_order(tmp_path: Path, top_first: bool, flagged: bool) -> None:
    clip = write_clip(tmp_path / "a.mp4", weave(pan(FIELDS), top_first), interlaced=flagged)
    assert detect_field_order(clip) == ("tff" if top_first else "bff")
    assert probe(clip).interlaced is flagged


@pytest.mark.parametrize("flagged", [True, False])
def test_progressive_pictures_are_left_alone(tmp_path: Path, flagged: bool) -> None:
    """``flagged``: film coded as interlaced, as on many discs; the pixels decide."""
    truth = pan(20)
    clip = write_clip(tmp_path / "a.mp4", truth, interlaced=flagged)
    assert probe(clip).interlaced is flagged
    auto, _, reader = read(clip, "auto")
    off, _, _ = read(clip, "off")
    assert not reader.deinterlacing
    assert all((a == b).all() for a, b in zip(auto, off, strict=True))


@pytest.mark.parametrize("top_first", [True, False])
def test_deinterlaced_is_closer_to_the_truth(tmp_path: Path, top_first: bool) -> None:
    halves = pan(FIELDS)
    clip = write_clip(tmp_path / "a.mp4", weave(halves, top_first), rate=Fraction(30000, 1001))
    truth = halves[::2]  # the moment of each frame's first field
    woven, woven_times, _ = read(clip, "off")
    auto, times, reader = read(clip, "auto")
    assert reader.deinterlacing
    assert len(auto) == len(woven) == FIELDS // 2
    assert times == woven_times == [i * Fraction(1001, 30000) for i in range(FIELDS // 2)]
    assert distance(auto, truth) < 0.25 * distance(woven, truth)


def test_on_and_off_are_obeyed(tmp_path: Path) -> None:
    progressive = write_clip(tmp_path / "p.mp4", pan(12))
    assert read(progressive, "on")[2].deinterlacing
    assert len(read(progressive, "on")[0]) == 12
    woven = write_clip(tmp_path / "i.mp4", weave(pan(24), True), interlaced=True)
    assert not read(woven, "off")[2].deinterlacing


def test_variable_times_survive_deinterlacing(tmp_path: Path) -> None:
    times = [0, 40, 90, 95, 300, 301, 500, 777]
    clip = write_clip(
        tmp_path / "a.mp4", weave(pan(16), True), times=times, time_base=Fraction(1, 1000), options={"bf": "0"}
    )
    frames, got, _ = read(clip, "on")
    assert len(frames) == 8
    assert got == [Fraction(t, 1000) for t in times]


def test_mpeg2_as_on_dvds(tmp_path: Path) -> None:
    halves = pan(FIELDS)
    clip = write_clip(
        tmp_path / "a.mpg", weave(halves, True), codec="mpeg2video", options={"b": "20000000"}, interlaced=True
    )
    auto, times, reader = read(clip, "auto")
    assert reader.deinterlacing and len(auto) == FIELDS // 2
    assert times[0] == 0 and times == sorted(set(times))
    assert distance(auto, halves[::2]) < 0.4 * distance(read(clip, "off")[0], halves[::2])


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ({"progressive": 40}, "progressive"),
        ({"progressive": 40, "flagged": 40}, "progressive"),
        ({"tff": 30, "progressive": 10}, "tff"),
        ({"bff": 30, "tff": 2, "undetermined": 8}, "bff"),
        ({"tff": 16, "progressive": 24}, "progressive"),
        ({"tff": 16, "progressive": 24, "flagged": 40}, "tff"),  # telecined film
        ({"undetermined": 40}, "progressive"),
        ({"undetermined": 40, "flagged": 40}, "auto"),  # a still picture: nothing to see, the stream is believed
    ],
)
def test_verdict(counts: dict[str, int], verdict: str) -> None:
    assert decide(Counter(counts)) == verdict
