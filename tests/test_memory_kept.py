"""``--memory`` where work is kept: what it was made with decides, as long as that can be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import infer
from ldm_video.pipeline import memory_plan
from ldm_video.pipeline.arguments import DEFAULTS, parse_arguments
from ldm_video.pipeline.journal import Journal, Survey
from ldm_video.pipeline.memory_costs import held_before_work
from ldm_video.pipeline.memory_plan import kept_choice
from ldm_video.pipeline.settings import read_config
from ldm_video.pipeline.workers import Share
from ldm_video.restoration import prepare
from tests.cli_support import call, write_tiny_bundle
from tests.test_memory_plan import COSTS, FULL_HD
from tests.video_io_support import pan, write_clip


def test_work_that_is_kept_decides_as_long_as_it_fits(tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    assert kept_choice(output, 10**11, COSTS, FULL_HD) is None
    with Journal(output).hold({"tile": (512, 384), "segments: segment": 20}, Survey(99), Share()):
        kept = kept_choice(output, 10**11, COSTS, FULL_HD)
        assert kept is not None and (kept.tile, kept.segment) == ((512, 384), 20)
        assert kept_choice(output, 10**9, COSTS, FULL_HD) is None


@pytest.mark.parametrize(
    ("tile", "segment"),
    [((512, 128), 20), ((520, 384), 20), (None, 12), (None, 33)],
    ids=["below twice the overlap", "no multiple", "shorter than a window", "longer than asked for"],
)
def test_another_commands_tile_and_segment_are_not_taken(
    tile: tuple[int, int] | None, segment: int, tmp_path: Path
) -> None:
    output = tmp_path / "hd.mkv"
    with Journal(output).hold({"tile": tile, "segments: segment": segment}, Survey(99), Share()):
        assert kept_choice(output, 10**11, COSTS, FULL_HD) is None


@pytest.mark.parametrize(("words", "expected"), [((), 9), (("--restart",), 20), (("--overlap", "4"), 20)])
def test_an_amount_goes_on_with_what_is_kept(
    words: tuple[str, ...], expected: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with ``--restart``, nor where segments of 9 frames cannot be: four frames are shared at both ends."""
    clip, output = write_clip(tmp_path / "sd.mkv", pan(4, 32, 48)), tmp_path / "hd.mkv"
    bundle = write_tiny_bundle(tmp_path / "tiny")
    given = ["--overlap", "2", "--window", "6", "segment=20", "--memory", "900GB", "--dry-run", *words]
    with Journal(output).hold({"tile": None, "segments: segment": 9}, Survey(99), Share()):
        assert call(infer, "--input", clip, "--output", output, "--model", bundle, *given) == 0
    assert re.findall(r"segments of (\d+) frames", capsys.readouterr().err) == [str(expected)]


@pytest.mark.parametrize(("room", "tile", "cut"), [(1.2e9, None, True), (900e9, None, False), (1.2e9, "64x64", False)])
def test_what_cannot_fit_is_cut_unasked(
    room: float, tile: str | None, cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tape enlarged four times may need more than there is: its system would kill the process half way."""
    free = int(held_before_work(torch.device("cpu")) + room)
    monkeypatch.setattr(memory_plan, "free_memory", lambda *_: free)
    clip, bundle = write_clip(tmp_path / "sd.mkv", pan(40, 128, 192)), write_tiny_bundle(tmp_path / "tiny")
    arguments = parse_arguments(
        ["--input", str(clip), "--output", str(tmp_path / "hd.mkv"), "--model", str(bundle), "tile_overlap=32"]
        + ([] if tile is None else ["--tile", tile])
    )
    _, job, restorer, _ = prepare(arguments, read_config(arguments, DEFAULTS))
    asked = (32, None if tile is None else (64, 64))
    assert ((job.rules.segment, restorer.settings.tile) != asked) == cut
