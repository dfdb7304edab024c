"""The benchmark of speed: clips of the right length, differences of two runs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.bench import speed
from eval.methods import Method
from ldm_video.core.errors import UserError
from ldm_video.video_io import FrameReader
from tests.cli_support import call
from tests.video_io_support import pan, write_clip


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "sd.mp4", pan(8, 32, 48))


def test_a_clip_is_cut(clip: Path, tmp_path: Path) -> None:
    with FrameReader(clip) as whole, FrameReader(speed.cut(clip, 3, tmp_path / "three.mkv")) as three:
        frames = list(three)
        assert len(frames) == 3
        assert all((a.pixels - b.pixels).abs().mean() < 0.01 for a, b in zip(frames, whole, strict=False))
    with pytest.raises(UserError, match="has 8 frames and 9 are needed"):
        speed.cut(clip, 9, tmp_path / "nine.mkv")


class Loaded:
    """Takes 1 s a frame, and 5 s to load what it holds until another method loads, or not; all by ``clock``."""

    held = ""
    clock = 0.0
    fills = False

    def __init__(self, name: str, holds: bool = True) -> None:
        self.name, self.holds = name, holds

    def identity(self) -> str:
        return self.name

    def missing(self, scale: int) -> str | None:
        return None

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        if Loaded.held != self.name or not self.holds:
            Loaded.held = self.name
            Loaded.clock += 5
        with FrameReader(lowres) as reader:
            Loaded.clock += sum(1 for _ in reader)


def test_every_round_times_every_method(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of methods that load in each of their runs, as processes of their own do."""
    monkeypatch.setattr(speed, "SHORT", 2)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: Loaded.clock))
    names = ["ours", "ours --steps 0", "peer"]
    found = speed.measure(clip, [Loaded(name, holds=False) for name in names], more=6, more_peers=4, rounds=2)
    assert found == {name: [1.0, 1.0] for name in names}


@pytest.mark.parametrize("names", [["peer"], ["peer", "other"]])
def test_loading_is_no_part_of_a_frame(names: list[str], clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loaded, "held", "")
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: Loaded.clock))
    found = speed.measure(clip, [Loaded(name) for name in names], more=6, more_peers=4, rounds=2)
    assert found == {name: [1.0, 1.0] for name in names}


def test_ours_is_timed_with_other_options_as_well(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = []

    def measure(source: Path, methods: list[Method], *_: int) -> dict[str, list[float]]:
        timed.extend(methods)
        return {method.name: [0.5] for method in methods}

    monkeypatch.setattr(speed, "measure", measure)
    assert call(speed, "--input", clip, "--peers", "bicubic", "--also=--steps 0") == 0
    assert [(method.name, getattr(method, "options", ())) for method in timed] == [
        ("ours", ()), ("bicubic", ()), ("ours --steps 0", ("--steps", "0")),
    ]  # fmt: skip
    assert "ours --steps 0" in capsys.readouterr().out


def test_a_method_that_is_not_there_is_named(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(speed, "--input", clip, "--peers", "real_esrgan_x5") == 2
    assert "real_esrgan_x5" in capsys.readouterr().err
    assert call(speed, "--input", clip, "--rounds", 0) == 2
