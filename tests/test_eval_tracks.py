"""The benchmark's tracks: holes of a stated area that never change, object masks, interlaced MPEG-2."""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.plane import VideoPlane

from eval import benchmark, inputs, results
from eval.broadcast import weave, write_broadcast
from eval.clips import frames_of
from eval.framewise import open_frames, to_image
from eval.holes import FAMILIES, MaskOf, read_object
from eval.inputs import Track, build_inputs
from eval.measure import Worker, measure
from eval.methods import find_methods
from ldm_video.core.errors import UserError, run_cli
from ldm_video.video_io.interlace import detect_field_order
from ldm_video.video_io.probe import probe
from tests import video_io_support as independent
from tests.cli_support import call

SUITE = Path(__file__).resolve().parents[1] / "configs" / "eval" / "suite.yaml"
SIZE = (480, 848)
AREAS = {"blob": 0.08, "box": 0.08, "logo": 0.01, "scratch": 0.015}
# A changed digest is a changed benchmark: tables made before and after cannot be compared.
FROZEN = {
    "blob": "ef58b5512891d7db",
    "box": "137ec4bf7dd25057",
    "logo": "e2dcb3f65be250e0",
    "scratch": "2055d8a252b0c0b0",
}
BROADCAST = Track("broadcast", broadcast_bits=0.6)


def read(path: Path) -> np.ndarray:
    return np.stack(list(frames_of(path)))


def drawn(family: str, seed: int = 0, frames: int = 3, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = FAMILIES[family](np.random.default_rng(seed), frames, size, AREAS[family])
    return stack(mask, frames)


def stack(mask: MaskOf, frames: int) -> np.ndarray:
    return np.stack([mask(index) for index in range(frames)])


def write_pan(folder: Path, frames: int, size: tuple[int, int] = (64, 96), step: int = 3) -> Path:
    folder.mkdir(parents=True)
    for index, frame in enumerate(independent.pan(frames, *size, step)):
        cv2.imwrite(str(folder / f"{index:05d}.png"), (frame[..., ::-1] * 255).round().astype(np.uint8))
    return folder


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("seed", range(4))
def test_a_hole_has_the_area_that_it_says(family: str, seed: int) -> None:
    mask = drawn(family, seed)
    assert mask.shape == (3, *SIZE) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    assert mask.mean(axis=(1, 2)) == pytest.approx(np.full(3, AREAS[family]), rel=0.03)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_holes_are_frozen(family: str) -> None:
    assert hashlib.sha256(np.packbits(drawn(family)).tobytes()).hexdigest()[:16] == FROZEN[family]
    assert (drawn(family) != drawn(family, seed=1)).any()


def test_a_box_is_a_box_and_stays() -> None:
    for seed in range(5):
        mask = drawn("box", seed)
        rows, columns = np.flatnonzero(mask[0].any(1)), np.flatnonzero(mask[0].any(0))
        assert mask[0][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 1 / 2.1 < len(rows) / len(columns) < 2.1
        assert (mask == mask[0]).all()


def test_a_logo_keeps_to_one_corner_and_lets_the_picture_through() -> None:
    corners = set()
    for seed in range(8):
        mask = drawn("logo", seed)
        assert (mask == mask[0]).all()
        y, x = np.nonzero(mask[0])
        corners.add((y.mean() > SIZE[0] / 2, x.mean() > SIZE[1] / 2))
        box = (np.ptp(y) + 1) * (np.ptp(x) + 1)
        assert np.ptp(y) < SIZE[0] / 2 and np.ptp(x) < SIZE[1] / 2
        assert mask[0].sum() < 0.6 * box
    assert len(corners) > 2
    with pytest.raises(UserError, match="does not fit"):
        FAMILIES["logo"](np.random.default_rng(0), 1, SIZE, 0.5)


def test_scratches_are_thin_whole_and_tremble() -> None:
    mask = drawn("scratch", frames=6)
    assert mask.any(axis=2).all()  # on every line of every frame
    runs = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (0, 0), (1, 0))), axis=2) == 1
    assert (runs.sum(axis=2) == 3).all()
    assert all((a != b).any() for a, b in pairwise(mask))
    small = stack(FAMILIES["scratch"](np.random.default_rng(0), 2, (32, 48), 0.005), 2)
    assert (small.sum(axis=2) == 3).all()  # never less than a pixel


def test_object_masks_are_cut_like_the_clip(tmp_path: Path) -> None:
    write_pan(tmp_path / "clips" / "seen", 2, (70, 100))
    write_pan(tmp_path / "clips" / "unseen", 2, (70, 100))
    folder = tmp_path / "masks" / "seen"
    folder.mkdir(parents=True)
    for index in range(2):
        picture = np.zeros((70, 100), np.uint8)
        picture[10:40, 20 + index : 90] = 255
        cv2.imwrite(str(folder / f"{index:05d}.png"), picture)
    track = Track("things", hole="object")
    assert track.has_hole
    (given,) = build_inputs(tmp_path / "clips", tmp_path / "in", track, 4, 0, masks=tmp_path / "masks")
    assert given.clip == "seen" and given.mask is not None
    expected = np.zeros((2, 64, 96), bool)
    expected[0, 10:40, 20:90] = expected[1, 10:40, 21:90] = True
    np.testing.assert_array_equal(read(given.mask)[..., 0] > 0.5, expected)
    assert abs(read(given.lowres)[0, 5:8, 10:20] - 0.5).max() < 0.02  # painted before it was made smaller
    assert build_inputs(tmp_path / "clips", tmp_path / "in2", track, 4, 0) == []


def test_object_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write_pan(tmp_path / "masks", 3)
    doubled = stack(read_object(folder, 3, (128, 192), (128, 192)), 3)
    np.testing.assert_array_equal(doubled[:, ::2, ::2], stack(read_object(folder, 3, (64, 96), (64, 96)), 3))
    with pytest.raises(UserError, match="3 masks for a clip of 4 frames"):
        read_object(folder, 4, (64, 96), (64, 96))
    (folder / "00001.png").unlink()
    with pytest.raises(UserError, match="frame 1 is missing"):
        read_object(folder, 2, (64, 96), (64, 96))


def test_object_masks_follow_their_numbers(tmp_path: Path) -> None:
    """Without leading zeros 10 comes after 9, as in the clip's own folder of frames."""
    for index in range(12):
        picture = np.zeros((16, 16), np.uint8)
        picture[:, index] = 255
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture)
    mask = stack(read_object(tmp_path, 12, (16, 16), (16, 16)), 12)
    assert [int(frame[0].argmax()) for frame in mask] == list(range(12))


def test_masks_without_white_are_refused(tmp_path: Path) -> None:
    """Palettes, such as DAVIS's dark red for its first object, are not white."""
    cv2.imwrite(str(tmp_path / "0.png"), np.full((16, 16), 60, np.uint8))
    with pytest.raises(UserError, match="no white pixel"):
        read_object(tmp_path, 1, (16, 16), (16, 16))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_holes_take_no_more_memory_for_a_longer_clip(family: str) -> None:
    mask = FAMILIES[family](np.random.default_rng(0), 100_000, SIZE, AREAS[family])
    assert mask(99_999).shape == SIZE


@pytest.mark.parametrize(
    "values",
    [
        {"noise_sigma": "high"},
        {"blur_sigma": -3.0},
        {"crf": "high"},
        {"crf": 60},
        {"hole_area": 8},
        {"hole_area": True},
    ],
)
def test_a_track_that_cannot_be(values: dict) -> None:
    with pytest.raises(UserError, match="track wrong"):
        Track("wrong", **values)


def test_inputs_that_were_left_half_built_are_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of one seed never stays beside the low-res clip of another."""
    write_pan(tmp_path / "clips" / "one", 2)
    track = Track("holes", hole="box", hole_area=0.08)
    (given,) = build_inputs(tmp_path / "clips", tmp_path / "in", track, 4, 7)
    assert given.mask is not None
    first = read(given.mask)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "_degraded", stopped)
        with pytest.raises(KeyboardInterrupt):
            build_inputs(tmp_path / "clips", tmp_path / "in", track, 4, 8)
    assert (read(given.mask) != first).any()
    build_inputs(tmp_path / "clips", tmp_path / "in", track, 4, 7)
    np.testing.assert_array_equal(read(given.mask), first)


def test_inputs_of_an_earlier_format_are_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pan(tmp_path / "clips" / "one", 2)
    build = (tmp_path / "clips", tmp_path / "in", Track("plain", crf=20), 4, 7)
    (given,) = build_inputs(*build)
    given.lowres.write_bytes(b"of an earlier version")
    build_inputs(*build)
    assert given.lowres.read_bytes() == b"of an earlier version"  # the same recipe is not built again
    monkeypatch.setattr(inputs, "FORMAT", inputs.FORMAT + 1)
    build_inputs(*build)
    assert len(read(given.lowres)) == 2


def test_weaving_agrees_with_the_standards_formulas() -> None:
    moments = independent.pan(2, 64, 96)
    (expected,) = independent.weave(moments, top_first=True)
    (woven,) = weave((moment * 255).round().astype(np.uint8) for moment in moments)

    def samples(plane: VideoPlane) -> np.ndarray:
        """Without what fills up its lines."""
        return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].astype(int)

    for plane, other in zip(woven.planes, expected.planes, strict=True):
        one, two = samples(plane), samples(other)
        assert np.abs(one - two).mean() < 1.0 and np.abs(one - two).max() <= 8  # another chroma filter, the same fields
    upside_down = independent.weave(moments, top_first=False)[0]
    luma = [samples(frame.planes[0]) for frame in (woven, expected, upside_down)]
    assert np.abs(luma[0] - luma[1]).max() <= 1 < np.abs(luma[0] - luma[2]).max()


def test_broadcast_is_interlaced_mpeg2_of_the_stated_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [(f * 200 + rng.uniform(0, 12, f.shape)).astype(np.uint8) for f in independent.pan(61, 96, 128)]
    path = tmp_path / "a.mkv"
    assert write_broadcast(path, pictures, (96, 128), bits=0.5) == 30  # the odd one is dropped
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.codec_context.name == "mpeg2video" and stream.average_rate == 25
    assert len(frames) == 30 and all(frame.interlaced_frame for frame in frames)
    assert detect_field_order(path) == "tff"
    with av.open(str(path)) as container:
        payload = sum(packet.size for packet in container.demux(video=0))
    assert payload * 8 / (30 * 96 * 128) == pytest.approx(0.5, rel=0.25)
    with pytest.raises(UserError, match="multiples of 4"):
        write_broadcast(tmp_path / "b.mkv", pictures, (94, 128), 0.5)


@pytest.mark.parametrize("size", [(96, 128), (580, 96), (96, 1280)])
def test_broadcast_keeps_its_colour_at_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    colour = np.array([40, 180, 60])
    write_broadcast(tmp_path / "x.mkv", [np.full((*size, 3), colour, np.uint8)] * 4, size, 3.0)
    with open_frames(tmp_path / "x.mkv") as deinterlaced:
        fields = np.stack([to_image(frame.pixels) for frame in deinterlaced])
    for clip in (read(tmp_path / "x.mkv") * 255, fields):
        np.testing.assert_allclose(clip.mean(axis=(0, 1, 2)), colour, atol=2)


def test_broadcast_reference_is_the_first_field_and_methods_deinterlace(tmp_path: Path) -> None:
    write_pan(tmp_path / "clips" / "pan", 33, (128, 192), step=6)
    (given,) = build_inputs(tmp_path / "clips", tmp_path / "in", BROADCAST, 2, seed=0)
    source = [cv2.imread(str(f))[..., ::-1] for f in sorted((tmp_path / "clips" / "pan").iterdir())]
    np.testing.assert_array_equal((read(given.ref) * 255).round(), source[:32:2])
    assert given.frames == 16 and given.mask is None and probe(given.lowres).interlaced
    (bicubic,) = find_methods(["bicubic"])
    bicubic(given.lowres, None, 2, tmp_path / "made.mkv")
    woven = np.stack([cv2.resize(f, (192, 128), interpolation=cv2.INTER_CUBIC) for f in read(given.lowres)])
    made, ref = read(tmp_path / "made.mkv"), read(given.ref)
    assert np.square(made - ref).mean() < 0.5 * np.square(woven - ref).mean()
    (again,) = build_inputs(tmp_path / "clips", tmp_path / "elsewhere", BROADCAST, 2, seed=0)
    np.testing.assert_array_equal(read(again.lowres), read(given.lowres))


def test_tracks_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown hole 'donut'"):
        Track("a", hole_area=0.1, hole="donut")
    with pytest.raises(UserError, match="neither a hole nor crf"):
        Track("a", hole_area=0.1, broadcast_bits=0.3)
    write_pan(tmp_path / "clips" / "still", 1)
    with pytest.raises(UserError, match="has one frame"):
        build_inputs(tmp_path / "clips", tmp_path / "in", BROADCAST, 4, seed=0)


def test_benchmark_on_broadcast_and_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to do on a track without clips; no consistency with fields; what is left out is written down."""
    write_pan(tmp_path / "clips" / "pan", 6)
    out = tmp_path / "out"
    arguments = ["--suite", str(SUITE), "--root", str(tmp_path / "clips"), "--out", str(out), "--methods", "bicubic"]
    arguments += ["--tracks", "broadcast,sd_object", "--jobs", "1", "metrics=[psnr,lowres_consistency]"]
    monkeypatch.setattr(sys, "argv", ["eval.benchmark", *arguments])
    run_cli(benchmark.main)
    results = json.loads((out / "results.json").read_text())
    assert sorted(results) == ["broadcast"]
    summary = results["broadcast"]["bicubic"]
    assert list(summary["scores"]) == ["psnr"] and summary["peak_bytes"] > 50e6 and summary["seconds"] > 0
    assert "sd_object is without pan: without --masks DIR" in (out / "table.md").read_text()


@pytest.mark.parametrize("change", ["masks", "metric"])
def test_no_row_is_kept_of_other_masks_or_of_an_earlier_metric(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "__call__", lambda _, *work: measure(*work))  # no process of its own: it takes seconds
    masks, out = tmp_path / "masks" / "pan", tmp_path / "out"
    write_pan(tmp_path / "clips" / "pan", 2)
    write_pan(masks, 2)
    arguments = ["--suite", SUITE, "--root", tmp_path / "clips", "--out", out, "--masks", tmp_path / "masks"]
    arguments += ["--tracks", "sd_object", "--jobs", 1, "metrics=[psnr]", "--methods"]

    def rows(methods: str) -> list[str]:
        assert call(benchmark, *arguments, methods) == 0
        return list(json.loads((out / "results.json").read_text())["sd_object"])

    assert rows("telea") == ["bicubic", "telea"]
    assert rows("bicubic") == ["bicubic", "telea"]  # of the same inputs
    if change == "masks":
        cv2.imwrite(str(masks / "00001.png"), np.full((64, 96), 255, np.uint8))
    else:
        monkeypatch.setattr(results, "FORMAT", results.FORMAT + 1)
    assert rows("bicubic") == ["bicubic"]
