"""Time stamps and fields through ``infer.py``: at scale 1 without a hole, where no model has a say in the pixels."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import infer
from ldm_video.models.video_model import VideoModel
from ldm_video.pipeline.parts import Parts
from ldm_video.video_io import FrameReader
from ldm_video.video_io.reader import Deinterlace
from tests.cli_support import call, files_below, read_pixels
from tests.video_io_support import packet_times, pan, weave, write_clip

SIZE = (32, 48)
FIELDS = 24
TIMES = [0, 17, 100, 101, 350, 900, 933, 2000, 2001, 2100]  # ms
SEGMENTS = ("segment=4", "--overlap", 1, "--window", 3)
ROUNDING = 1.5  # levels of 255: from 8 bits to RGB and back


@pytest.fixture(scope="module")
def variable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = pan(len(TIMES), *SIZE)
    return write_clip(tmp_path_factory.mktemp("variable") / "a.mp4", frames, times=TIMES, time_base=Fraction(1, 1000))


@pytest.fixture(scope="module")
def woven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("woven")
    return write_clip(folder / "a.mp4", weave(pan(FIELDS, *SIZE), top_first=True), interlaced=True)


@pytest.fixture(scope="module")
def progressive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Film coded as interlaced, as on many discs."""
    return write_clip(tmp_path_factory.mktemp("progressive") / "a.mp4", pan(FIELDS // 2, *SIZE), interlaced=True)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts each output was joined from, one entry for each clip of several segments; no model is run."""
    counts: list[int] = []
    join = Parts.join

    def counted(parts: Parts) -> None:
        counts.append(len(parts.plan))
        join(parts)

    def run(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(Parts, "join", counted)
    monkeypatch.setattr(VideoModel, "predict", run)
    monkeypatch.setattr("ldm_video.models.codec.VideoCodec.decode", run)
    return counts


@pytest.fixture
def keep(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """``keep(source, "name.mkv", *options)``: run infer.py at scale 1, expect success, return the output."""

    def run(source: Path, name: str, *options: object) -> Path:
        output = tmp_path / "out" / name
        assert call(infer, "--input", source, "--output", output, "--model", bundle, "--scale", 1, *options) == 0
        return output

    return run


def seen(path: Path, deinterlace: Deinterlace) -> np.ndarray:
    """What the reader gives: ``t h w 3`` in [0, 255]."""
    with FrameReader(path, deinterlace) as reader:
        return np.stack([(frame.pixels.permute(1, 2, 0).numpy() + 1) * 127.5 for frame in reader])


def farthest(a: np.ndarray, b: np.ndarray) -> float:
    """Of two clips of one shape."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ((), []),
        (SEGMENTS, [3]),
        ((*SEGMENTS, "chain=1"), [3]),
        ((*SEGMENTS, "join=continue"), [3]),
        (("segment=3", "--overlap", 0, "--window", 1), [4]),
    ],
    ids=["whole", "fade", "chains", "continue", "apart"],
)
def test_variable_times_are_those_of_the_input(
    variable: Path,
    keep: Callable[..., Path],
    joined: list[int],
    suffix: str,
    options: tuple[object, ...],
    parts: list[int],
) -> None:
    """To the tick, also where parts are joined and where frames are cross-faded."""
    output = keep(variable, f"b.{suffix}", *options)
    assert joined == parts
    assert packet_times(output) == packet_times(variable) == [Fraction(time, 1000) for time in TIMES]


@pytest.mark.parametrize("options", [(), SEGMENTS], ids=["whole", "parts"])
def test_a_clip_may_begin_late_and_hold_its_frames_in_another_order(
    keep: Callable[..., Path], tmp_path: Path, options: tuple[object, ...]
) -> None:
    """B-frames, and a clock of 1/90000 s that is at three seconds when the picture begins."""
    times = [270000 + 90 * time + time % 7 for time in TIMES]
    source = write_clip(
        tmp_path / "late.mp4",
        pan(len(times), *SIZE),
        times=times,
        time_base=Fraction(1, 90000),
        options={"bf": "2", "preset": "medium"},
    )
    assert packet_times(keep(source, "b.mp4", *options)) == [Fraction(time, 90000) for time in times]


def test_each_frame_stays_at_its_time(variable: Path, keep: Callable[..., Path], joined: list[int]) -> None:
    """Joined from parts without loss: frame by frame the input, and beside it in the comparison."""
    output = keep(variable, "b.mkv", *SEGMENTS, "--codec", "ffv1", "--compare")
    assert joined == [3]
    source = read_pixels(variable)
    moved = np.abs(source[1:] - source[:-1]).max((1, 2, 3))
    assert moved.min() > 10 * ROUNDING
    assert farthest(read_pixels(output), source) < ROUNDING
    compare = output.with_name("b_compare.mkv")
    assert packet_times(compare) == packet_times(variable)
    assert farthest(read_pixels(compare), np.concatenate([source, source], axis=2)) < ROUNDING


@pytest.mark.parametrize("segments", [(), SEGMENTS], ids=["whole", "parts"])
@pytest.mark.parametrize("clip", ["woven", "progressive"])
@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_a_clip_is_deinterlaced_as_asked(
    request: pytest.FixtureRequest,
    keep: Callable[..., Path],
    joined: list[int],
    clip: str,
    mode: Deinterlace,
    segments: tuple[object, ...],
) -> None:
    """``auto`` undoes woven fields and leaves film alone, ``on`` takes both for fields, ``off`` none."""
    source: Path = request.getfixturevalue(clip)
    pixels = read_pixels(keep(source, "b.mkv", "--codec", "ffv1", "--deinterlace", mode, *segments))
    assert bool(joined) == bool(segments)
    assert farthest(pixels, seen(source, mode)) < ROUNDING
    undone = mode == "on" or (mode == "auto" and clip == "woven")
    assert (farthest(pixels, seen(source, "off")) > 10 * ROUNDING) == undone


@pytest.mark.parametrize(
    ("options", "mode"), [((), "auto"), (("deinterlace=on",), "on"), (("deinterlace=off",), "off")]
)
def test_deinterlacing_in_the_config(
    progressive: Path, woven: Path, keep: Callable[..., Path], options: tuple[object, ...], mode: Deinterlace
) -> None:
    """By default ``auto``; a bare on or off, which YAML takes for a truth value, is what it says."""
    for source in (progressive, woven):
        output = keep(source, f"{source.parent.name}.mkv", "--codec", "ffv1", *options)
        assert farthest(read_pixels(output), seen(source, mode)) < ROUNDING


def test_deinterlaced_is_the_moment_of_the_first_field(woven: Path, keep: Callable[..., Path]) -> None:
    """Against the pictures that the fields were taken from; the time stamps are the frames'."""
    truth = np.stack(pan(FIELDS, *SIZE)[::2]) * 255
    outputs = [keep(woven, f"{mode}.mkv", "--codec", "ffv1", "--deinterlace", mode) for mode in ("auto", "off")]
    auto, off = (np.square(read_pixels(output) - truth).mean() for output in outputs)
    assert auto < 0.3 * off
    assert packet_times(outputs[0]) == packet_times(woven) == [Fraction(i, 25) for i in range(FIELDS // 2)]


def test_an_archive_is_looked_at_clip_by_clip(
    woven: Path, progressive: Path, keep: Callable[..., Path], tmp_path: Path
) -> None:
    """One that is woven and one that is not, in both orders: each is treated as it would be alone."""
    sources = {"1.mp4": progressive, "2.mp4": woven, "3.mp4": progressive}
    (tmp_path / "in").mkdir()
    for name, source in sources.items():
        (tmp_path / "in" / name).write_bytes(source.read_bytes())
    output = keep(tmp_path / "in", "", "--codec", "ffv1")
    assert files_below(output) == {"1.mkv", "2.mkv", "3.mkv", "report.json"}
    for name, source in sources.items():
        pixels = read_pixels((output / name).with_suffix(".mkv"))
        assert farthest(pixels, seen(source, "auto")) < ROUNDING
        assert (farthest(pixels, seen(source, "off")) > 10 * ROUNDING) == (source is woven)
