"""Where the time of a run goes: every part is timed, and the parts of the model are no more than all of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.bench import pipeline
from ldm_video.models.codec import Codec
from ldm_video.pipeline import restore
from tests.cli_support import call, write_tiny_bundle
from tests.video_io_support import pan, write_clip

PARTS = ("average", "sampler", "codec", "steady", "finish")
SLOW = 0.3  # seconds that the parts below take more


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(SLOW)
        return function(*arguments)

    return slow


def test_every_part_of_the_model_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for owner, name in ((restore, "average_along_motion"), (restore, "steady"), (Codec, "finish")):
        monkeypatch.setattr(owner, name, slowed(getattr(owner, name)))
    clip = write_clip(tmp_path / "sd.mp4", pan(4, 32, 48))
    model = write_tiny_bundle(tmp_path / "model")
    options = ("--model", model, "--device", "cpu", "--steps", 1, "average=1", "steady=1")
    assert call(pipeline, "--input", clip, "--output", tmp_path / "hd.mp4", *options) == 0
    lines = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    found = {line[0].strip(): float(line[1]) * 4 / 1000 for line in lines}  # of 4 frames: seconds
    seconds = {name: found[label.strip()] for name, label in pipeline.ROWS.items()}
    assert all(seconds[name] > 0 for name in seconds)
    assert all(seconds[name] >= SLOW for name in ("average", "steady", "finish"))
    assert sum(seconds[name] for name in PARTS) <= seconds["model"] + 0.01
