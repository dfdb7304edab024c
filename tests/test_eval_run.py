"""The runner: scores and their regions, streaming, resuming, intervals, and its command line."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

import ldm_video
from eval import results
from eval import run as runner
from eval.clips import ClipPair, match_clips, zip_frames
from eval.metrics import backbones
from eval.metrics.backbones import MetricUnavailable
from eval.metrics.fidelity import psnr
from eval.report_parts.load import load_tracks
from eval.results import bootstrap_interval, summarise
from eval.run import parse_metrics
from eval.scoring import LEAST_SIDE, METRICS, MetricChoice, Tools, moments, score_clip
from ldm_video.core.errors import UserError
from tests.eval_run_support import SIZE, command, write_clip, write_pairs


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Path, Path]:
    return write_pairs(tmp_path)


@pytest.mark.parametrize("side", [1, 8, 15, 30, 31])
def test_a_metric_that_a_frame_is_too_small_for_is_named_and_left_out(tmp_path: Path, side: int) -> None:
    clip = write_clip(tmp_path / "tiny", size=(side, 48))
    scores = score_clip(ClipPair("tiny", clip, clip), tuple(map(MetricChoice, LEAST_SIDE | {"psnr": 1})), Tools())
    assert set(scores.unavailable) == {name for name, least in LEAST_SIDE.items() if side < least}
    assert all(f"48x{side}" in reason for reason in scores.unavailable.values())
    taken = {column.partition("[")[0].partition(":")[0] for row in scores.rows for column in row}
    assert taken == {"psnr", *LEAST_SIDE} - set(scores.unavailable)


def test_scores_in_regions(tmp_path: Path) -> None:
    """An error of 0.2 in the hole alone: all of it inside, none outside."""
    ref, pred, mask = (tmp_path / name for name in ("ref", "pred", "mask"))
    hole = np.zeros(SIZE, np.uint8)
    hole[8:20, 8:24] = 255
    for folder in (ref, pred, mask):
        folder.mkdir()
    picture = np.full((*SIZE, 3), 100, np.uint8)
    cv2.imwrite(str(ref / "0.png"), picture)
    cv2.imwrite(str(pred / "0.png"), np.where(hole[..., None] > 0, picture + 51, picture))
    cv2.imwrite(str(mask / "0.png"), hole)
    scores = score_clip(ClipPair("x", pred, ref, mask=mask), (MetricChoice("psnr"),), Tools()).means()
    assert scores["psnr@inside"] == pytest.approx(-20 * np.log10(0.2), abs=1e-4)
    assert scores["psnr@band"] == scores["psnr@outside"] == 100.0
    share = hole.mean() / 255
    assert scores["psnr"] == pytest.approx(-10 * np.log10(0.04 * share), abs=1e-4)


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    pair = ClipPair("x", write_clip(tmp_path / "p", 8), write_clip(tmp_path / "r", 8))
    seen: list[weakref.ref] = []
    for moment in moments(pair, Tools()):
        seen.append(weakref.ref(moment.pred))
        assert sum(reference() is not None for reference in seen) <= 2
    assert len(seen) == 8


def test_metrics_every_other_frame_and_unknown_names(clips: tuple[Path, Path]) -> None:
    pred, ref = clips
    scores = score_clip(ClipPair("a", pred / "a", ref / "a"), parse_metrics("psnr/2,psnr_y"), Tools())
    assert ["psnr" in row for row in scores.rows] == [True, False, True, False]
    assert all("psnr_y" in row for row in scores.rows)
    with pytest.raises(UserError, match=r"unknown metric 'pnsr'; there are psnr,"):
        parse_metrics("pnsr")
    with pytest.raises(UserError, match="after the slash"):
        parse_metrics("psnr/0")


def test_run_writes_frames_clips_and_summary(clips: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001
    pred, ref = clips
    out = tmp_path / "out"
    assert command(monkeypatch, "--pred", pred, "--ref", ref, "--metrics", "psnr,ewarp_lai", "--out", out) == 0
    rows = list(csv.DictReader((out / "frames" / "a.csv").open()))
    assert [row["frame"] for row in rows] == ["0", "1", "2", "3"]
    for row, moment in zip(rows, zip_frames(ClipPair("a", pred / "a", ref / "a")), strict=True):
        assert float(row["psnr"]) == pytest.approx(psnr(moment["pred"], moment["ref"]))
    assert rows[0]["ewarp_lai[dis]"] == "" and rows[1]["ewarp_lai[dis]"] != "" != rows[1]["ewarp_lai[dis]:ref"]
    clip_means = [json.loads((out / "clips" / f"{name}.json").read_text())["scores"]["psnr"] for name in "ab"]
    summary = json.loads((out / "summary.json").read_text())
    assert clip_means[0] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]))
    assert summary["scores"]["psnr"]["mean"] == pytest.approx(np.mean(clip_means))
    assert clip_means[0] == pytest.approx(-20 * np.log10(10 / 255)) and clip_means[1] < clip_means[0]


def test_run_resumes(clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pred, ref = clips
    arguments = ("--pred", pred, "--ref", ref, "--metrics", "psnr", "--out", tmp_path / "out")
    assert command(monkeypatch, *arguments) == 0
    before = (tmp_path / "out" / "summary.json").read_text()
    scored: list[str] = []
    real = runner.score_clip
    monkeypatch.setattr(runner, "score_clip", lambda pair, *rest: scored.append(pair.name) or real(pair, *rest))
    assert command(monkeypatch, *arguments) == 0
    assert scored == [] and (tmp_path / "out" / "summary.json").read_text() == before
    cv2.imwrite(str(pred / "b" / "00001.png"), np.zeros((*SIZE, 3), np.uint8))
    assert command(monkeypatch, *arguments) == 0
    assert scored == ["b"]
    assert command(monkeypatch, *arguments, "--metrics", "psnr_y") == 0
    assert scored == ["b", "a", "b"]


def test_two_methods_do_not_share_a_folder(
    clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pred, ref = clips
    other = Path(shutil.copytree(pred, tmp_path / "other"))
    out = tmp_path / "out"

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in out.rglob("*.*")}

    arguments = ("--ref", ref, "--metrics", "psnr", "--out", out)
    assert command(monkeypatch, "--pred", pred, *arguments) == 0
    before = files()
    for another in (other, pred / "a"):
        capsys.readouterr()
        assert command(monkeypatch, "--pred", another, *arguments) == 2
        says = f"error: {out} holds the scores of {pred}; choose another --out for those of {another}\n"
        assert capsys.readouterr().err == says and files() == before
    monkeypatch.chdir(tmp_path)
    (pred / "b" / "00003.png").write_bytes((pred / "b" / "00002.png").read_bytes())
    assert command(monkeypatch, "--pred", "pred", *arguments) == 0  # the same folder under another name
    assert files() != before
    (out / "summary.json").write_text("[]")  # one that does not say what it is of
    assert command(monkeypatch, "--pred", other, *arguments) == 0


def test_the_summary_says_what_it_was_computed_with(
    clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"revision": "0123abc", "dirty": True}
    monkeypatch.setattr(results, "git_revision", lambda: state)
    arguments = ("--pred", clips[0], "--ref", clips[1], "--metrics", "psnr", "--out", tmp_path / "out")
    assert command(monkeypatch, *arguments, "--device", "auto") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["scored_by"] == {
        "ldm-video": ldm_video.__version__,
        "torch": torch.__version__,
        **state,
        "device": f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu",
    }


def test_help_names_every_metric(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert command(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"\b{name}\b", text) for name in (*METRICS, "seam_error"))


def test_two_jobs_give_what_one_gives(clips: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, _ = match_clips(*clips)
    metrics = parse_metrics("psnr")
    summaries = [
        runner.score_pairs(pairs, runner.Plan(metrics, Tools(), tmp_path / str(jobs), jobs=jobs), show=False)
        for jobs in (1, 2)
    ]
    assert summaries[0] == summaries[1]


def test_a_bad_clip_is_named_and_the_rest_is_kept(
    clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pred, ref = clips
    (pred / "a" / "00003.png").unlink()
    arguments = ("--pred", pred, "--ref", ref, "--metrics", "psnr", "--out", tmp_path / "out")
    assert command(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: 1 of 2 clips not scored: a: ") and "has 3 frames" in error
    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())["failed"]) != []
    assert (tmp_path / "out" / "clips" / "b.json").is_file() and not (tmp_path / "out" / "clips" / "a.json").exists()
    assert command(monkeypatch, *arguments, "--strict", "--out", tmp_path / "strict") == 2
    assert not (tmp_path / "strict" / "clips" / "b.json").exists()


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_unreadable_file_ends_with_a_line_and_2(
    clips: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    content: bytes,
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(content)
    assert command(monkeypatch, "--pred", bad, "--ref", clips[1] / "a", "--out", tmp_path / "out") == 2
    assert "bad.mp4" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_metric_without_weights_is_reported_not_invented(
    clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def absent(net: str, path: str | None, device: str) -> None:
        raise MetricUnavailable("no weights; pip install them")

    monkeypatch.setattr(backbones, "_lpips_network", absent)
    arguments = ("--pred", clips[0], "--ref", clips[1], "--metrics", "psnr,lpips", "--out", tmp_path / "out")
    assert command(monkeypatch, *arguments) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["scores"]) == {"psnr"} and "pip install" in summary["unavailable"]["lpips"]
    assert "lpips is not available: no weights" in capsys.readouterr().out
    monkeypatch.undo()  # once the weights are there, what is kept no longer serves
    assert command(monkeypatch, *arguments) == 0
    assert set(json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]) == {"psnr", "lpips"}
    monkeypatch.setattr(backbones, "_lpips_network", absent)
    for metrics in ("psnr,lpips", "all"):
        capsys.readouterr()
        assert command(monkeypatch, *arguments, "--metrics", metrics, "--strict", "--out", tmp_path / "strict") == 2
        assert capsys.readouterr().err == "error: no weights; pip install them\n"
    assert not (tmp_path / "strict").exists()


def test_a_device_that_cannot_be_used(
    clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ("--pred", clips[0], "--ref", clips[1], "--out", tmp_path / "out", "--device", "abacus")
    assert command(monkeypatch, *arguments) == 2
    assert "unknown device 'abacus'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20  # the normal approximation, good for 400 values
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap_interval(values) == (low, high) and bootstrap_interval(values, seed=1) != (low, high)
    assert bootstrap_interval([1.0]) is None
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_summary_takes_the_gap_clip_by_clip() -> None:
    records = [
        {"scores": {"e": 1.0, "e:ref": 3.0}, "unavailable": {}},
        {"scores": {"e": 4.0, "e:ref": 3.0}, "unavailable": {}},
        {"scores": {"e": None}, "unavailable": {"x": "why"}},
    ]
    summary = summarise(records)
    assert summary["scores"]["e"]["gap"] == 1.5  # |1 - 3| and |4 - 3|: gaps do not cancel
    assert summary["scores"]["e"]["mean"] == 2.5 and summary["scores"]["e"]["clips"] == 2
    assert summary["clips"] == 3 and summary["unavailable"] == {"x": "why"}


def test_an_arrow_says_where_better_is() -> None:
    """Not for a score of which the best is the reference's own."""
    names = [
        "psnr_y@inside",
        "lpips",
        "seam_error:time",
        "ewarp_lai[dis]",
        "ewarp_lai[dis]@inside:ref",
        "lowres_consistency",
    ]
    scores = {name: {"mean": 1.0, "interval": None, "clips": 1} for name in names}
    console = Console(file=io.StringIO(), width=80)
    runner.print_summary({"clips": 1, "scores": scores, "unavailable": {}}, console)
    rows = [line.split("│")[1].strip() for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert rows == ["psnr_y@inside ↑", "lpips ↓", "seam_error:time ↓", *names[3:]]


def test_the_summary_names_what_it_is_of(
    clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report shows these and no others that lie there from before."""
    out = tmp_path / "out"
    assert command(monkeypatch, "--pred", clips[0], "--ref", clips[1], "--metrics", "psnr", "--out", out) == 0
    (clips[0] / "a" / "00003.png").unlink()
    assert command(monkeypatch, "--pred", clips[0], "--ref", clips[1], "--metrics", "psnr", "--out", out) == 2
    assert json.loads((out / "summary.json").read_text())["names"] == ["b"]
    assert (out / "clips" / "a.json").is_file()
    (track,) = load_tracks([out])
    assert track.clips() == ["b"]
