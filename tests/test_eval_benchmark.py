"""The benchmark: what its inputs are, that a hole leaks nothing, and that the table says what was measured."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch.nn import functional as F

from data.degrade import DegradeConfig, degrade_pixels
from eval import benchmark
from eval.benchmark import read_suite
from eval.clips import frames_of
from eval.degradations import shrink
from eval.holes import moving_blob
from eval.inputs import BenchmarkInput, Track, build_inputs
from eval.kept import KEY, in_order, read_kept
from eval.measure import Worker, measure
from eval.methods import Method, find_methods
from eval.table import markdown
from ldm_video.config.load import load_config
from ldm_video.core.errors import UserError, run_cli

SUITE = Path(__file__).resolve().parents[1] / "configs" / "eval" / "suite.yaml"
CLEAN, SD, HOLE = Track("clean"), Track("sd", 1.2, 3.0, 20), Track("sd_hole", 1.2, 3.0, 20, 0.08)


def write_clip(folder: Path, frames: int = 3, size: tuple[int, int] = (85, 117), low: int = 0) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    texture = cv2.GaussianBlur(rng.random((size[0] + 20, size[1] + 20, 3)), (0, 0), 1.5)
    texture = (texture - texture.min()) / np.ptp(texture) * (255 - low) + low
    for index in range(frames):
        crop = texture[2 * index : 2 * index + size[0], 3 * index : 3 * index + size[1]]
        cv2.imwrite(str(folder / f"{index:03d}.png"), crop.round().astype(np.uint8))
    return folder


def read(path: Path) -> np.ndarray:
    return np.stack(list(frames_of(path)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clips" / "one")
    return tmp_path / "clips"


def test_clean_is_bicubic_of_the_cropped_reference(root: Path, tmp_path: Path) -> None:
    (given,) = build_inputs(root, tmp_path / "in", CLEAN, 4, seed=0)
    ref = read(given.ref)
    source = np.stack([cv2.imread(str(f))[..., ::-1] for f in sorted((root / "one").iterdir())])
    np.testing.assert_array_equal((ref * 255).round(), source[:, :80, :112])  # multiples of 16, lossless
    small = F.interpolate(torch.from_numpy(ref).permute(0, 3, 1, 2), scale_factor=0.25, mode="bicubic", antialias=True)
    expected = (small.clamp(0, 1).permute(0, 2, 3, 1) * 255).round().numpy()
    np.testing.assert_allclose(read(given.lowres) * 255, expected, atol=1.01)
    assert given.mask is None and given.frames == 3


def test_sd_has_the_noise_that_it_says(root: Path, tmp_path: Path) -> None:
    lossless = Track("sd_lossless", 1.2, 3.0, -1)
    quiet = Track("quiet", 1.2, 0.0, -1)
    noisy, clean = (read(build_inputs(root, tmp_path / "in", t, 4, seed=0)[0].lowres) for t in (lossless, quiet))
    assert (noisy - clean).std() * 255 == pytest.approx(3.0, rel=0.1)
    (given,) = build_inputs(root, tmp_path / "in", SD, 4, seed=0)
    assert given.lowres.suffix == ".mp4" and read(given.lowres).shape == (3, 20, 28, 3)


def test_degradation_agrees_with_the_one_of_training() -> None:
    """Two codes written apart: the benchmark's, frame by frame in [0, 1], and training's, by clip in [-1, 1]."""
    frame = np.random.default_rng(0).random((32, 48, 3), dtype=np.float32)
    config = DegradeConfig(blur_sigma=(1.2, 1.2))
    clip = torch.from_numpy(frame).permute(2, 0, 1)[None] * 2 - 1
    expected = degrade_pixels(clip, 4, config, np.random.default_rng(0))[0].permute(1, 2, 0).numpy() / 2 + 0.5
    np.testing.assert_allclose(shrink(frame, 4, 1.2, 0.0, np.random.default_rng(0)), expected, atol=1e-5)


def test_inputs_are_frozen(root: Path, tmp_path: Path) -> None:
    (first,) = build_inputs(root, tmp_path / "in", HOLE, 4, seed=0)
    stamp = first.lowres.stat().st_mtime_ns
    (again,) = build_inputs(root, tmp_path / "in", HOLE, 4, seed=0)
    assert again == first and again.lowres.stat().st_mtime_ns == stamp
    (elsewhere,) = build_inputs(root, tmp_path / "elsewhere", HOLE, 4, seed=0)
    np.testing.assert_array_equal(read(elsewhere.lowres), read(first.lowres))
    (other,) = build_inputs(root, tmp_path / "other", HOLE, 4, seed=1)
    assert (read(other.mask) != read(first.mask)).any()


def test_hole_is_a_moving_8_percent(tmp_path: Path) -> None:
    write_clip(tmp_path / "clips" / "long", frames=6)
    (given,) = build_inputs(tmp_path / "clips", tmp_path / "in", HOLE, 4, seed=0)
    mask = read(given.mask)[..., 0]
    assert set(np.unique(mask.round(6))) == {0.0, 1.0}
    # the filler takes every pixel that the outline touches, which tells on so small a frame
    assert mask.mean(axis=(1, 2)) == pytest.approx(np.full(6, 0.08), rel=0.1)
    assert (mask[0] != mask[-1]).any()


def test_what_another_run_measured_of_the_same_inputs_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert read_kept(path, {}) == ({}, [])
    stored = {
        "sd": {"ours": {KEY: "a", "clips": 1}, "bicubic": {KEY: "old", "clips": 1}},
        "clean": {"bicubic": {KEY: "b"}},
        "gone": {"bicubic": {"clips": 1}},
    }
    path.write_text(json.dumps(stored))
    kept, dropped = read_kept(path, {"sd": "a", "clean": "b"})
    assert kept == {"sd": {"ours": {KEY: "a", "clips": 1}}, "clean": {"bicubic": {KEY: "b"}}}
    assert dropped == ["sd", "gone"]
    ordered = in_order({"sd": {"x": {}, "ours": {}, "bicubic": {}}, "clean": {}}, ["clean", "sd"], ["bicubic", "ours"])
    assert list(ordered) == ["clean", "sd"] and list(ordered["sd"]) == ["bicubic", "ours", "x"]
    path.write_text("[1]")
    assert read_kept(path, {"sd": "a"}) == ({}, [])


def test_blob_keeps_its_area_and_stays_inside() -> None:
    for seed in range(5):
        drawn = moving_blob(np.random.default_rng(seed), 40, (480, 848), 0.08)
        mask = np.stack([drawn(index) for index in range(40)])
        assert mask.mean(axis=(1, 2)) == pytest.approx(np.full(40, 0.08), rel=0.02)


def test_the_hole_leaks_nothing(root: Path, tmp_path: Path) -> None:
    """Two clips that differ inside the hole alone give the same low-res file."""
    (given,) = build_inputs(root, tmp_path / "in", HOLE, 4, seed=0)
    masks = read(given.mask)
    other = tmp_path / "changed" / "one"
    other.mkdir(parents=True)
    for index, (file, mask) in enumerate(zip(sorted((root / "one").iterdir()), masks, strict=True)):
        picture = cv2.imread(str(file))[:80, :112]
        cv2.imwrite(str(other / f"{index:03d}.png"), np.where(mask > 0.5, 255 - picture, picture))
    (changed,) = build_inputs(tmp_path / "changed", tmp_path / "in2", HOLE, 4, seed=0)
    assert (read(changed.ref) != read(given.ref)).any()
    np.testing.assert_array_equal(read(changed.lowres), read(given.lowres))


def test_classical_methods(tmp_path: Path) -> None:
    write_clip(tmp_path / "bright" / "one", low=170)  # the hole's grey paint is darker than anything in it
    (given,) = build_inputs(tmp_path / "bright", tmp_path / "in", HOLE, 4, seed=0)
    outputs = {}
    for method in find_methods(["bicubic", "lanczos", "telea", "navier_stokes"]):
        method(given.lowres, given.mask, 4, tmp_path / f"{method.name}.mkv")
        outputs[method.name] = read(tmp_path / f"{method.name}.mkv")
    lowres = (read(given.lowres) * 255).round().astype(np.uint8)
    for name, kernel in (("bicubic", cv2.INTER_CUBIC), ("lanczos", cv2.INTER_LANCZOS4)):
        expected = [cv2.resize(frame, (112, 80), interpolation=kernel) for frame in lowres]
        np.testing.assert_array_equal((outputs[name] * 255).round(), expected)
    hole = read(given.mask)[..., 0] > 0.5
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (25, 25))
    for name in ("telea", "navier_stokes"):
        changed = (outputs[name] != outputs["bicubic"]).any(axis=-1)
        for t in range(3):
            assert not changed[t][cv2.dilate(hole[t].astype(np.uint8), reach) == 0].any()
        assert changed[hole].mean() > 0.9
        errors = {key: np.abs(outputs[key] - read(given.ref))[hole].mean() for key in (name, "bicubic")}
        assert errors[name] < 0.5 * errors["bicubic"]
        assert outputs[name][hole].min() > 170 / 255 - 0.05  # no paint is drawn in from the border


def test_unknown_method_and_track_and_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown method 'magic'"):
        find_methods(["magic"])
    with pytest.raises(UserError, match=r"right keys.*blur"):
        file = tmp_path / "s.yaml"
        file.write_text(
            "{scale: 4, seed: 0, frames: null, metrics: [psnr], methods: [bicubic], tracks: {a: {blur: 1}}}"
        )
        read_suite(load_config(file))


@pytest.mark.parametrize("override", ["frames=all", "frames=0", "frames=true", "scale=0", "scale=x4", "seed=none"])
def test_a_value_of_the_suite_that_cannot_be(override: str) -> None:
    with pytest.raises(UserError, match=f"{override.partition('=')[0]} is .*; give a whole number, "):
        read_suite(load_config(SUITE, [override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("metrics=psnr", r"metrics is 'psnr'; give a list of names, as in metrics=\[psnr,lpips\]"),
        ("methods=[1]", r"methods is \[1\]; give a list of names"),
        ("tracks.sd=3", "tracks.sd is 3; give its options"),
    ],
)
def test_a_value_of_the_suite_of_another_kind(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_suite(load_config(SUITE, [override]))


def test_the_shipped_suite_is_the_one_described() -> None:
    suite = read_suite(load_config(SUITE))
    assert {t.name: t for t in suite.tracks} == {
        "clean": CLEAN,
        "sd": SD,
        "broadcast": Track("broadcast", 1.2, 3.0, broadcast_bits=0.3),
        "sd_hole": HOLE,
        "sd_box": Track("sd_box", 1.2, 3.0, 20, 0.08, "box"),
        "sd_logo": Track("sd_logo", 1.2, 3.0, 20, 0.01, "logo"),
        "sd_scratch": Track("sd_scratch", 1.2, 3.0, 20, 0.015, "scratch"),
        "sd_object": Track("sd_object", 1.2, 3.0, 20, hole="object"),
    }
    assert suite.scale == 4 and suite.methods[0] == "bicubic" and "ours" in suite.methods


def test_benchmark_end_to_end(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    arguments = ["--suite", str(SUITE), "--root", str(root), "--out", str(out), "--methods", "telea", "--jobs", "1"]
    arguments += ["--tracks", "sd,sd_hole", "metrics=[psnr,psnr_y,ewarp_lai]", "frames=2"]
    monkeypatch.setattr(sys, "argv", ["eval.benchmark", *arguments])
    run_cli(benchmark.main)
    results = json.loads((out / "results.json").read_text())
    assert {track: sorted(methods) for track, methods in results.items()} == {
        "sd": ["bicubic"],  # Telea has nothing to fill there
        "sd_hole": ["bicubic", "telea"],
    }
    made, ref = read(out / "outputs" / "sd" / "bicubic" / "one.mkv"), read(out / "inputs" / "ref" / "one.mkv")
    assert len(made) == 2
    expected = np.mean([peak_signal_noise_ratio(r, p, data_range=1.0) for r, p in zip(ref, made, strict=True)])
    assert results["sd"]["bicubic"]["scores"]["psnr"]["mean"] == pytest.approx(expected, abs=1e-3)
    luma = f"{results['sd']['bicubic']['scores']['psnr_y']['mean']:.2f}"
    table = (out / "table.md").read_text()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| bicubic")]
    assert len(rows) == 2 and rows[0][1] == luma
    assert table.count("| reference |") == 2 and rows[0][-1] == "1.0 |" and rows[0][-3] == "1.0"


@dataclass
class Marking:
    """Writes its mark; ``stopped`` right after, as by Ctrl-C."""

    mark: str
    stopped: bool = False

    def identity(self) -> str:
        return self.mark

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        output.write_text(self.mark)
        if self.stopped:
            raise KeyboardInterrupt


def test_an_output_is_never_taken_for_that_of_other_options(tmp_path: Path) -> None:
    lowres = tmp_path / "low.mkv"
    lowres.touch()
    given = BenchmarkInput("one", lowres, lowres, None, 1, 4)

    def run(method: Marking) -> str:
        worker = cast(Worker, lambda function, *arguments: measure(function, *arguments))
        benchmark.run_once(cast(Method, method), given, tmp_path / "out", worker)
        return (tmp_path / "out" / "one.mkv").read_text()

    assert run(Marking("first")) == "first"
    with pytest.raises(KeyboardInterrupt):
        run(Marking("second", stopped=True))
    assert run(Marking("first")) == "first"


def test_table_prints_units_and_the_reference() -> None:
    scores = {
        "psnr_y": {"mean": 25.901}, "lpips": {"mean": 0.5514},
        "ewarp_lai[raft]": {"mean": 0.01234, "gap": 0.002}, "ewarp_lai[raft]:ref": {"mean": 0.01},
    }  # fmt: skip
    summary = {"clips": 4, "scores": scores, "unavailable": {"dists": "install it"}, "seconds": 0.2}
    summary["peak_bytes"] = 300 * 2**20
    other = summary | {"seconds": 0.5, "peak_bytes": 480 * 2**20}
    lines = markdown({"sd": {"bicubic": summary, "other": other}}, "bicubic").splitlines()
    assert lines[0] == "**sd**, 4 clips"
    assert "E_warp[raft] x1e-2" in lines[2] and "DISTS" not in lines[2]
    assert lines[2].startswith(
        "| method | PSNR-Y dB ↑ | LPIPS ↓ | E_warp[raft] x1e-2 | gap to reference ↓ | s / frame |"
    )
    assert lines[4] == "| reference | ∞ | 0 | 1.000 | 0.000 | - | - | - | - |"
    assert lines[5] == "| bicubic | 25.90 | 0.551 | 1.234 | 0.200 | 0.2 | 1.0 | 300 | 1.0 |"
    assert lines[6] == "| other | 25.90 | 0.551 | 1.234 | 0.200 | 0.5 | 2.5 | 480 | 1.6 |"
    assert lines[8] == "dists is not available: install it"
