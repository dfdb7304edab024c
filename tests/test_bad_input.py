"""Bad clips, masks and options of ``infer.py``: one clear line on stderr, exit code 2, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import infer
from ldm_video.video_io import probe
from tests.bad_input_support import FRAMES, SIZE, refusal, small_clip, white
from tests.cli_support import call, files_below
from tests.video_io_support import pan, write_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip(tmp_path_factory)


@pytest.fixture
def refused(bundle: Path, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(*options)``: infer.py ends with code 2, one line and no new file; returns the line."""
    return refusal(bundle, clip, tmp_path, capfd)


# The input.


def test_missing_file(refused: Callable[..., str], tmp_path: Path) -> None:
    assert f"{tmp_path / 'none.mp4'} does not exist" in refused(source=tmp_path / "none.mp4")


def test_text_that_is_named_mp4(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "note.mp4").write_text("not a video at all\n" * 50)
    assert "note.mp4 is not a video" in refused(source=tmp_path / "note.mp4")


def test_empty_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert "empty.mp4 is empty" in refused(source=tmp_path / "empty.mp4")


def test_zero_frames(refused: Callable[..., str], tmp_path: Path) -> None:
    with av.open(str(tmp_path / "zero.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = SIZE
        container.start_encoding()
    assert "zero.mkv" in refused(source=tmp_path / "zero.mkv")


def test_a_folder_without_frames(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "holds no frames" in refused(source=tmp_path / "folder")


def test_sound_alone(refused: Callable[..., str], tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        block.sample_rate = 48000
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    assert "no video stream" in refused(source=tmp_path / "song.m4a")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_truncated_file_gives_what_there_is_and_says_how_much(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str
) -> None:
    options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    whole = write_clip(tmp_path / f"whole{suffix}", pan(30, *SIZE), container_options=options)
    source = tmp_path / f"cut{suffix}"
    source.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    code = call(infer, "--input", source, "--output", tmp_path / "hd.mp4", "--model", bundle, "--scale", 1)
    assert code == 0
    written = probe(tmp_path / "hd.mp4").frames
    assert written is not None and 5 < written < 28
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: "))
    assert f"decoded {written} " in line
    assert files_below(tmp_path) == {whole.name, source.name, "hd.mp4"}


# Masks and boxes.


@pytest.mark.parametrize("count", [FRAMES - 2, FRAMES + 3])
def test_a_mask_of_another_length_names_both_counts(refused: Callable[..., str], tmp_path: Path, count: int) -> None:
    line = refused("--mask", white(tmp_path, count))
    assert f"has {count} frames but the clip has {FRAMES}" in line


@pytest.mark.parametrize("count", [FRAMES - 2, FRAMES + 3])
def test_a_mask_that_is_found_too_long_or_short_at_the_end_leaves_no_output(
    refused: Callable[..., str], tmp_path: Path, count: int
) -> None:
    """Matroska announces no count: the writer has frames in it by the time that the lengths are known."""
    mask = white(tmp_path, count, ".mkv", "ffv1")
    line = refused("--mask", mask, "segment=3", "--overlap", 0, "--compare")
    assert f"has {count} frames but the clip has {FRAMES}" in line


def test_a_folder_mask_of_another_length(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mask").mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / "mask" / f"{i}.png"), np.zeros(SIZE, np.uint8))
    assert f"has 2 frames but the clip has {FRAMES}" in refused("--mask", tmp_path / "mask")


def test_missing_mask(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "none.png does not exist" in refused("--mask", tmp_path / "none.png")


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("1,2,3", "is not x,y,w,h"),
        ("a,b,c,d", "is not x,y,w,h"),
        ("4,4,0,9", "is empty"),
        ("-9,-9,5,5", "box -9,-9,5,5 lies outside"),
        ("48,0,5,5", "box 48,0,5,5 lies outside the 48x32 frame"),  # in the numbers that the user gave
    ],
)
def test_bad_box(refused: Callable[..., str], box: str, message: str) -> None:
    assert message in refused("--box", box)


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["stepz=3"], "unknown key 'stepz'"),
        (["steps"], "is not of the form key=value"),
        (["steps=three"], "steps is 'three', which is not a whole number"),
        (["window=2.5"], "window is 2.5"),
        (["model=null"], "model is None"),
        (["feather=-1"], "feather is -1"),
        (["average=-1"], "average is -1"),
        (["steady=-1"], "steady is -1"),
        (["steady=0.5"], "steady is 0.5, which is not a whole number"),
        (["fidelity=1.5"], "fidelity is 1.5; give a share from 0 to 1"),
        (["fidelity=-0.1"], "fidelity is -0.1; give a share from 0 to 1"),
        (["segment=0"], "segment is 0; give 1 or more"),
        (["segment=-5"], "segment is -5; give 1 or more"),
        (["chain=0"], "chain is 0; give 1 or more"),
        (["cuts=maybe"], "unknown cuts 'maybe'"),
        (["join=weld"], "unknown join 'weld'"),
        (["tile_overlap=-1"], "tile_overlap is -1; give 0 or more"),
        (["tile_overlap=5000"], "tile_overlap is 5000; give 4096 or less"),
        (["feather=100000"], "feather is 100000; give 1024 or less"),
        (["average=100000"], "average is 100000; give 1000 or less"),
        (["steady=100000"], "steady is 100000; give 1000 or less"),
        (["dilate=-1"], "dilate is -1; give 0 or more"),
        (["dilate=1e9"], "dilate is 1000000000.0; give 256 or less"),
        (["dilate=.nan"], "dilate is nan; give a finite number"),
        (["dilate=.inf"], "dilate is inf; give a finite number"),
        (["--scale", "nan"], "scale is 'nan'"),
        (["--scale", "99"], "outside 1 to 8"),
        (["--scale", "0.5"], "outside 1 to 8"),
        (["--scale", "2", "--height", "64"], "either scale or height"),
        (["--height", "63"], "not a positive even number"),
        (["--height", "10000000"], "--height 10000000 is above 65500"),
        (["--height", "65000"], "the output would be 97500x65000, at most 65500"),
        # More than memory holds, so that the mask must not be laid out on it before.
        (["--height", "16390", "--box", "0,0,9,9", "--tile", "512x512"], "24584x16390, videos hold 16384"),
        (["--steps", "-1"], "--steps -1 is below 0"),
        (["--steps", "0", "--strength", "0.5"], "--steps 0 has none"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--turbo"], "unrecognized arguments: --turbo"),
        (["--tile", "nonsense"], "is not HEIGHTxWIDTH"),
        (["--tile", "100x100"], "multiples of 16"),
        (["--tile", "64x64"], "above 128"),
        (["--window", "0"], "less than --window 0"),
        (["--overlap", "6"], "--overlap 6 must be less than --window 6"),
        (["colour=sepia"], "unknown colour fix 'sepia'"),
        (["fill=magic"], "unknown fill 'magic'"),
        (["deinterlace=maybe"], "unknown deinterlace 'maybe'"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--dtype", "int4"], "unknown dtype 'int4'"),
        (["--attention", "flash9"], "unknown attention 'flash9'"),
        (["--codec", "realvideo"], "unknown codec 'realvideo'"),
        (["preset=fastest"], "unknown preset 'fastest'"),
        (["--crf", "-7"], "--crf -7 is outside"),
        (["--config", "none.yaml"], "none.yaml does not exist"),
    ],
    ids=" ".join,
)
def test_bad_option(refused: Callable[..., str], options: list[str], message: str) -> None:
    assert message in refused(*options)


def test_xformers_that_is_not_installed(refused: Callable[..., str]) -> None:
    try:
        import xformers.ops  # noqa: F401
    except ImportError:
        assert "xformers cannot be used here" in refused("--attention", "xformers")
    else:
        pytest.skip("xformers is installed")


def test_a_device_that_this_machine_has_not(refused: Callable[..., str]) -> None:
    assert "device 'hpu' cannot be used" in refused("--device", "hpu")
