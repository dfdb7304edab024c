"""The report: it says what was scored, shows what its rules say, and stands alone."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eval import report
from eval.clips import match_clips
from eval.columns import describe
from eval.report_parts import pictures
from eval.report_parts.load import load_tracks
from eval.results import write_json
from eval.run import Plan, parse_metrics, score_pairs
from eval.scoring import Tools
from ldm_video.core.errors import UserError
from tests.cli_support import call, read_pixels
from tests.report_support import (
    FRAMES,
    METHODS,
    SIZE,
    SPOILT,
    Element,
    Parser,
    frames_csv,
    one_benchmark,
    one_page,
    picture,
    summary_of,
)


@pytest.fixture(scope="module")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_benchmark(tmp_path_factory)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return one_page(tmp_path_factory)


@pytest.fixture(scope="module")
def tree(page: str) -> Element:
    return Parser(page).top


@pytest.fixture
def bench(shared_bench: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(shared_bench, tmp_path / "copy"))


def test_the_table_is_the_summary(shared_bench: Path, tree: Element) -> None:
    (table,) = tree.find("table", data_track="clean")
    for method in METHODS:
        (row,) = table.find("tr", data_method=method)
        cells = {c.attributes["data-column"]: c.text for c in row.find("td") if "data-column" in c.attributes}
        expected = {}
        for column, score in summary_of(shared_bench, method)["scores"].items():
            if column.endswith(":ref"):
                continue
            scale, digits = (100, 3) if column == "ewarp_lai[dis]" else (1, 4 if "flick" in column else 2)
            expected[column] = f"{score['mean'] * scale:.{digits}f}"
            if "gap" in score:
                expected[f"{column}:gap"] = f"{score['gap'] * scale:.{digits}f}"
        assert cells == expected and len(expected) == 6
        assert [c.text for c in row.find("td")][-3:] == (
            ["0.25", "1.0", "3"] if method == "bicubic" else ["0.5", "2.0", "3"]
        )
    (reference,) = table.find("tr", class_="reference")
    own = summary_of(shared_bench, "bicubic")["scores"]["ewarp_lai[dis]:ref"]["mean"]
    assert [c.text for c in reference.find("td")][:4] == ["∞", "∞", f"{own * 100:.3f}", "0.000"]


def test_the_best_is_marked_and_warp_error_by_its_gap(shared_bench: Path, tree: Element) -> None:
    best = {c.attributes["data-column"]: c.parent.attributes["data-method"] for c in tree.find("td", class_="best")}
    scores = {method: summary_of(shared_bench, method)["scores"] for method in METHODS}
    warp = "ewarp_lai[dis]"
    assert best["psnr"] == max(METHODS, key=lambda m: scores[m]["psnr"]["mean"])
    assert best[f"{warp}:gap"] == min(METHODS, key=lambda m: scores[m][warp]["gap"])
    assert warp not in best


def test_nothing_is_fetched(tree: Element) -> None:
    for element in tree.walk():
        assert not {"href", "srcset", "action", "data", "poster"} & element.attributes.keys()
        assert (element.attributes.get("src") or "data:").startswith("data:")
        assert element.name not in {"link", "iframe", "object", "base"}
    (style,) = tree.find("style")
    assert "url(" not in style.text and "@import" not in style.text
    (policy,) = tree.find("meta", http_equiv="Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"https?:|fetch\(|XMLHttp", tree.find("script")[-1].text)


def test_every_label_is_pictured_at_the_right_size(tree: Element) -> None:
    labels = {"reference", "input", *METHODS}
    for clip in SPOILT:
        (crops, profiles) = tree.find("div", class_="block", data_clip=clip)
        (stage,) = tree.find("div", class_="stage", data_clip=clip)
        assert {i.attributes["data-label"] for i in stage.find("img")} == labels
        assert all(picture(i.attributes["src"]).shape == (*SIZE, 3) for i in stage.find("img"))
        for block, size in ((crops, SIZE), (profiles, (FRAMES, SIZE[1]))):
            figures = [f for f in block.find("figure") if f.attributes["data-label"] in labels]
            assert {f.attributes["data-label"] for f in figures} == labels
            for figure in figures:
                assert picture(figure.find("img")[0].attributes["src"]).shape == (*size, 3)


def test_the_profile_is_the_scan_line(shared_bench: Path, tree: Element) -> None:
    for clip in SPOILT:
        ref = read_pixels(shared_bench / "inputs" / "ref" / f"{clip}.mkv").round()
        changes = [np.abs(ref[t] - ref[t - 1]).mean(axis=(1, 2)) for t in range(1, FRAMES)]
        row = int(np.argmax(np.sum(changes, axis=0)))
        assert 33 < row < 47  # where the ball flies
        block = tree.find("div", class_="block", data_clip=clip)[1]
        for method in METHODS:
            made = read_pixels(shared_bench / "outputs" / "clean" / method / f"{clip}.mkv").round()
            (figure,) = block.find("figure", data_label=method)
            np.testing.assert_array_equal(picture(figure.find("img")[0].attributes["src"]), made[:, row])


def test_the_frame_shown_is_the_one_that_differs_most(shared_bench: Path, tree: Element) -> None:
    for clip, spoilt in SPOILT.items():
        scores = [frames_csv(shared_bench, method, clip, "psnr_y") for method in METHODS]
        differences = np.abs(np.subtract(*scores))
        assert differences.argmax() == spoilt
        heads = [h.text for h in tree.find("div", class_="block", data_clip=clip)[0].find("h4")]
        assert heads[0].startswith(f"Frame {spoilt}, PSNR-Y differs by {differences.max():.2f};")
        assert heads[1].startswith(f"Frame {np.argsort(differences)[-2]},")
        ref = read_pixels(shared_bench / "inputs" / "ref" / f"{clip}.mkv")[spoilt]
        (stage,) = tree.find("div", class_="stage", data_clip=clip)
        shown = picture(stage.find("img", data_label="reference")[0].attributes["src"])
        assert np.abs(shown - ref).mean() < 6  # JPEG; the other frames are further away than 10


def test_curves_are_the_frames_scores(shared_bench: Path, tree: Element) -> None:
    (script,) = tree.find("script", id="data")
    data = json.loads(script.text)
    assert data["methods"] == list(METHODS)
    drawn = data["tracks"]["clean"]["flash"]["columns"]
    for method in METHODS:
        expected = frames_csv(shared_bench, method, "flash", "psnr_y")
        assert drawn["psnr_y"][method] == pytest.approx(expected, rel=1e-4)
    assert drawn["ewarp_lai[dis]"]["bicubic"][0] is None and len(drawn["ewarp_lai[dis]"]["reference"]) == FRAMES


def test_a_missing_metric_is_a_dash_with_its_reason(bench: Path) -> None:
    summary = summary_of(bench, "lanczos")
    summary["unavailable"]["dists"] = "install <its> weights"
    del summary["scores"]["psnr_y"]
    write_json(bench / "scores" / "clean" / "lanczos" / "summary.json", summary)
    tree = Parser(report.make_report([bench], "x", clips=0, quality=80)).top
    rows = {method: tree.find("tr", data_method=method)[0] for method in METHODS}
    reasons = [c.attributes["title"] for c in rows["lanczos"].find("td", class_="missing")]
    assert reasons == ["not measured for this method", "install <its> weights"]
    assert {c.text for c in rows["lanczos"].find("td", class_="missing")} == {"-"}
    assert "dists is not available: install <its> weights" in [item.text for item in tree.find("li")]


def test_folders_of_eval_run_and_names_that_need_escaping(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One folder a method; the second has a clip less, which is said."""
    names = {"bicubic": "a<b>&'c'", "lanczos": "two"}
    for method, name in names.items():
        pairs, _ = match_clips(bench / "outputs" / "clean" / method, bench / "inputs" / "ref")
        plan = Plan(parse_metrics("psnr"), Tools(), tmp_path / name)
        score_pairs(pairs if method == "bicubic" else pairs[:1], plan, show=False)
    out = tmp_path / "report [v2].html"
    assert call(report, *(tmp_path / name for name in names.values()), "--out", out) == 0
    assert str(out) in capsys.readouterr().out
    tree = Parser(out.read_text()).top
    assert [row.find("th")[0].text for row in tree.find("tbody")[0].find("tr")] == ["reference", *names.values()]
    notes = " ".join(item.text for item in tree.find("li"))
    assert "two was scored on 1 of 2 clips" in notes and "There is no bicubic" in notes
    stages = {
        s.attributes["data-clip"]: {i.attributes["data-label"] for i in s.find("img")}
        for s in tree.find("div", class_="stage")
    }
    assert stages == {"drift": {"reference", *names.values()}, "flash": {"reference", names["bicubic"]}}


def test_a_method_called_reference_or_input_takes_no_others_place(bench: Path, tmp_path: Path) -> None:
    """Scores in folders of these names: of the spoilt method, which the pictures of neither show."""
    folders = [bench / "scores" / "clean" / "bicubic"]
    for name in ("reference", "input"):
        folders.append(Path(shutil.copytree(bench / "scores" / "clean" / "lanczos", tmp_path / name)))
    out = tmp_path / "report.html"
    assert call(report, *folders, "--out", out, "--quality", 100) == 0
    (stage,) = Parser(out.read_text()).top.find("div", class_="stage", data_clip="drift")
    shown = {str(i.attributes["data-label"]): picture(i.attributes["src"]) for i in stage.find("img")}
    assert set(shown) == {"reference", "input", "bicubic", "reference (scored)", "input (scored)"}
    ref = read_pixels(bench / "inputs" / "ref" / "drift.mkv")[SPOILT["drift"]]
    small = read_pixels(bench / "inputs" / "clean" / "lowres" / "drift.mkv")[SPOILT["drift"]]
    np.testing.assert_allclose(shown["reference"], ref, atol=8)
    np.testing.assert_allclose(shown["input"], small.repeat(4, axis=0).repeat(4, axis=1), atol=8)


def test_two_benchmarks_side_by_side(bench: Path, shared_bench: Path) -> None:
    (track,) = load_tracks([shared_bench, bench])
    assert list(track.methods) == ["bicubic", "lanczos", "bicubic (copy)", "lanczos (copy)"]
    paths = {name: method.clips["flash"].pair.pred for name, method in track.methods.items()}
    assert bench in paths["lanczos (copy)"].parents  # a copied folder shows its own files
    assert shared_bench in paths["lanczos"].parents


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("results.json", r"cannot read .*results\.json"),
        ("scores/clean/bicubic/summary.json", r"cannot read .*summary\.json"),
        ("scores/clean/lanczos/clips/drift.json", r"cannot read .*drift\.json"),
        ("scores/clean/lanczos/frames/drift.csv", r"cannot read .*drift\.csv"),
        ("outputs/clean/bicubic/flash.mkv", r"flash\.mkv"),
    ],
)
@pytest.mark.parametrize("how", ["truncated", "empty", "absent"])
def test_damaged_folders(
    bench: Path, tmp_path: Path, broken: str, says: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bench / broken
    if how == "truncated":
        _truncate(path)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    shutil.move(bench, tmp_path / "moved")  # what was recorded still exists in the original place: it is not looked at
    out = tmp_path / "out" / "report.html"
    assert call(report, tmp_path / "moved", "--out", out) == (0 if _has_elsewhere(broken, how) else 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    if _has_elsewhere(broken, how):
        assert errors == [] and out.is_file()
        return
    expected = r"neither results\.json nor" if (broken, how) == ("results.json", "absent") else says
    expected = r"holds 1 of 2 clips" if broken.endswith("drift.json") and how == "absent" else expected
    assert len(errors) == 1 and re.search(expected, errors[0])
    assert not out.exists() and not list(out.parent.glob("*"))


def _has_elsewhere(broken: str, how: str) -> bool:
    """An output that is absent here is still where its scores say that it was."""
    return broken.startswith("outputs") and how == "absent"


@pytest.mark.parametrize("arguments", [["--quality", "0"], ["--clips", "-1"], ["--no-such-option"]])
def test_bad_options(shared_bench: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(report, shared_bench, *arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_folders_without_anything(tmp_path: Path) -> None:
    for folder, says in ((tmp_path, "neither results.json nor summary.json"), (tmp_path / "x", "no such folder")):
        with pytest.raises(UserError, match=says):
            load_tracks([folder])


def test_the_page_is_kept_small(shared_bench: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ([shared_bench], "Evaluation report", 3)
    smaller = len(report.make_report(*arguments, quality=68).encode())
    assert smaller < len(page.encode()) < report.LARGEST_PAGE
    monkeypatch.setattr(report, "LARGEST_PAGE", smaller)
    assert len(report.make_report(*arguments, quality=88).encode()) == smaller
    monkeypatch.setattr(report, "LARGEST_PAGE", 1000)
    with pytest.raises(UserError, match="fewer --clips or a lower --quality"):
        report.make_report(*arguments, quality=88)


def test_memory_does_not_grow_with_the_clip(shared_bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames alive while a clip three times as long as the profile is read: the chosen ones and two more."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def long_clip(path: Path) -> Iterator[np.ndarray]:
        nonlocal most
        for _ in range(300):
            frame = np.zeros((*SIZE, 3), np.uint8)
            alive.append(weakref.ref(frame))
            yield frame
            most = max(most, sum(reference() is not None for reference in alive))

    monkeypatch.setattr(pictures, "_uint8_frames", long_clip)
    monkeypatch.setattr(pictures, "MOST_LINES", 100)
    kept, profile = pictures._read(Path("x"), SIZE, [7, 250], (5, 10, 30), enlarge=False)
    assert sorted(kept) == [7, 250] and profile.shape == (100, 30, 3)
    assert most <= 4
    alive.clear()
    kept.clear()
    pictures._activity(Path("x"))
    assert most <= 4


def test_columns_are_named_from_their_parts() -> None:
    titles = {
        "ewarp_lai[raft]@inside": "E_warp[raft] in hole",
        "psnr_y@band": "PSNR-Y around hole",
        "seam_error:rows": "seam error, rows",
        "brand_new": "brand_new",
    }
    assert {name: describe(name).title for name in titles} == titles


def test_style_and_script_are_packaged() -> None:
    root = Path(__file__).resolve().parents[1]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    patterns = [*data.get("*", []), *data.get("eval", []), *data.get("eval.report_parts", [])]
    for name in ("page.css", "page.js"):
        assert (root / "eval" / "report_parts" / name).is_file()
        assert any(Path(name).match(pattern) for pattern in patterns), f"{name} is not in the wheel"
