"""Cuts: at both ends, around very short shots, and none in motion."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from scenedetect import AdaptiveDetector, FrameTimecode

from data.prepare_parts.cuts import ContentScore, find_cuts
from data.prepare_parts.survey import survey

SIZE = (72, 128)


def shot(seed: int, frames: int, step: int = 1, side: int = 6) -> np.ndarray:
    """``t h w c``: patches of about ``side`` pixels that move ``step`` pixels a frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (SIZE[0] // side, (SIZE[1] + step * frames) // side + 1, 3))
    wide = cv2.resize(coarse.astype(np.uint8), (SIZE[1] + step * frames, SIZE[0]), interpolation=cv2.INTER_CUBIC)
    return np.stack([wide[:, step * index : step * index + SIZE[1]] for index in range(frames)])


def scores_of(frames: np.ndarray) -> list[float]:
    content = ContentScore()
    return [content.of(index, np.ascontiguousarray(frame)) for index, frame in enumerate(frames)]


@pytest.mark.parametrize(
    "lengths",
    [(40, 1), (40, 2), (1, 40), (2, 40), (2, 40, 2), (30, 1, 30), (30, 2, 30), (20, 1, 1, 20), (20, 3, 20), (20, 20)],
)
def test_every_cut_is_found_wherever_it_is(lengths: tuple[int, ...]) -> None:
    frames = np.concatenate([shot(seed, length) for seed, length in enumerate(lengths)])
    assert find_cuts(scores_of(frames), 3.0) == list(accumulate(lengths))[:-1]


def test_a_survey_finds_them_in_a_film(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in np.concatenate([shot(0, 1), shot(1, 20), shot(2, 2), shot(3, 20), shot(4, 2)]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    assert survey(tmp_path / "a.mp4", 3.0).cuts == [1, 21, 23, 43]


@pytest.mark.parametrize("step", [1, 3, 9])
def test_a_pan_is_no_cut(step: int) -> None:
    """However fast: at 9 pixels a frame each differs from the one before as much as two shots do."""
    scores = scores_of(shot(0, 40, step))
    assert step < 9 or min(scores[1:]) > 30
    assert find_cuts(scores, 3.0) == []
    assert find_cuts(scores, 1.5) == []


def test_a_fast_pan_in_which_each_frame_is_shown_twice_is_no_cut() -> None:
    scores = scores_of(np.repeat(shot(0, 20, 9), 2, 0)[1:-1])
    assert min(scores[1::2]) > 30 and max(scores[::2]) == 0
    assert find_cuts(scores, 3.0) == []


def test_motion_that_begins_and_ends_is_no_cut() -> None:
    """The camera rests, moves faster and faster, slows down and rests."""
    speeds = np.concatenate([np.zeros(8), np.linspace(0, 6, 10), np.linspace(6, 0, 10), np.zeros(8)])
    places = np.cumsum(speeds).astype(int)
    assert find_cuts(scores_of(shot(0, int(places[-1]) + 1)[places]), 3.0) == []


def test_a_flat_film_has_no_cut() -> None:
    assert find_cuts(scores_of(np.full((12, *SIZE, 3), 90, np.uint8)), 3.0) == []
    assert find_cuts([], 3.0) == find_cuts([0.0], 3.0) == []


def test_away_from_the_ends_cuts_are_those_of_the_adaptive_detector() -> None:
    frames = np.concatenate([shot(seed, length) for seed, length in enumerate((12, 9, 5, 14, 30))])
    theirs = AdaptiveDetector(adaptive_threshold=3.0, min_scene_len=1)
    found = []
    for index, frame in enumerate(frames):
        found += theirs.process_frame(FrameTimecode(index, fps=25.0), np.ascontiguousarray(frame))
    assert [cut.frame_num for cut in found] == find_cuts(scores_of(frames), 3.0) == [12, 21, 26, 40]
