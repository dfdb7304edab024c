"""The benchmark of joins: it sees a seam where there is one, drift where there is, and none where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.bench import continuation
from eval.bench.continuation import Frame, _ends, _segment_borders, measure, measure_tiles, there_and_back
from ldm_video.pipeline.plan import PlanRules, make_plan
from tests.cli_support import call, tiny_model, write_tiny_bundle


def clip(frames: int, side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    world = rng.random((side, side + frames, 3), np.float32)
    return np.stack([world[:, t : t + side] for t in range(frames)])


def test_there_and_back_never_jumps() -> None:
    source = np.arange(4.0).reshape(4, 1, 1, 1)
    assert there_and_back(source, 9).ravel().tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]


def test_borders_are_the_steps_that_two_segments_share() -> None:
    plan = make_plan(22, (), PlanRules(segment=12, overlap=2, chain=99))
    assert [(s.start, s.stop) for s in plan] == [(0, 12), (10, 22)]
    assert _segment_borders(plan) == {10, 11, 12}
    assert _segment_borders(make_plan(20, (), PlanRules(segment=10, overlap=0, chain=99))) == {10}


@pytest.mark.parametrize("join", ["fade", "continue"])
def test_every_frame_is_measured(join: str) -> None:
    result = measure(tiny_model(), clip(18), PlanRules(segment=8, overlap=2, chain=99, join=join))
    assert len(result.frames) == 18
    assert np.isfinite(result.seam) and result.seam > 0
    assert all(0 < frame.lowres < 100 and frame.colour >= 0 and frame.contrast > 0 for frame in result.frames)


def test_ends_tell_drift() -> None:
    frames = [Frame(0.0, 1.0, 40.0)] * 150 + [Frame(3.0, 0.5, 30.0)] * 150
    assert _ends(frames, "colour") == (0.0, 3.0)
    assert _ends(frames[:4] + frames[-4:], "lowres") == (40.0, 30.0)


def test_tiles_are_measured_beside_the_whole_picture() -> None:
    tiled, whole = measure_tiles(tiny_model(), clip(2, 128), tile=64, overlap=32)
    assert tiled > 0 and whole > 0


@pytest.mark.parametrize("option", ["--frames=0", "--frames=1", "--tile=0"])
def test_too_little_to_measure_is_one_line(
    option: str, tiny_video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_bundle(tmp_path / "tiny")
    assert call(continuation, "--clip", tiny_video, "--model", model, "--size", 32, option) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option.partition("=")[0] in line
