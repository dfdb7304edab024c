"""What is asked of the runner and cannot be given: an error or a note, and never an empty table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.eval_run_support import command, write_clip


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Path, Path]:
    """Of 64x48."""
    return write_clip(tmp_path / "pred", add=10), write_clip(tmp_path / "ref")


@pytest.mark.parametrize(("size", "code"), [((12, 16), 0), ((13, 17), 0), ((48, 64), 0), ((96, 128), 2), ((12, 24), 2)])
def test_what_the_reference_is_no_enlargement_of_is_refused(
    size: tuple[int, int], code: int, clips: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pred, ref = clips
    lowres = write_clip(tmp_path / "lowres", size=size)
    given = ("--pred", pred, "--ref", ref, "--lowres", lowres, "--metrics", "lowres_consistency")
    assert command(monkeypatch, *given, "--out", tmp_path / "out") == code
    if code:
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{lowres} is {size[1]}x{size[0]}" in line and "64x48" in line


def test_consistency_that_is_named_needs_what_the_method_was_given(
    clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pred, ref = clips
    given = ("--pred", pred, "--ref", ref, "--out", tmp_path / "out", "--metrics")
    assert command(monkeypatch, *given, "psnr,lowres_consistency") == 2
    assert "lowres_consistency needs --lowres" in capsys.readouterr().err
    assert command(monkeypatch, *given, "psnr") == 0


def test_one_frame_has_no_motion_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pred, ref = write_clip(tmp_path / "pred", frames=1, add=10), write_clip(tmp_path / "ref", frames=1)
    given = ("--pred", pred, "--ref", ref, "--out", tmp_path / "out", "--metrics", "psnr,ewarp_lai")
    assert command(monkeypatch, *given) == 0
    assert "ewarp_lai is not available: ref has one frame, nothing moves" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["scores"]) == ["psnr"] and list(summary["unavailable"]) == ["ewarp_lai"]
