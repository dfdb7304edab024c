"""Bad input to ``infer.py``: one clear line on stderr, exit code 2, and nothing written."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import infer
from ldm_video.core.errors import UserError
from ldm_video.pipeline.sizes import output_size
from ldm_video.video_io import VideoWriter, probe
from tests.cli_support import call, files_below, spawn
from tests.video_io_support import pan, write_clip

SIZE = (32, 48)
FRAMES = 9


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "sd.mp4", pan(FRAMES, *SIZE))


@pytest.fixture
def refused(bundle: Path, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(*options)``: infer.py ends with code 2, one line and no new file; returns the line.

    ``capfd`` sees what the C libraries print too.
    """

    def run(
        *options: object,
        source: Path = clip,
        output: Path = tmp_path / "hd.mp4",
        model: Path = bundle,
    ) -> str:
        before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
        capfd.readouterr()
        code = call(infer, "--input", source, "--output", output, "--model", model, *options)
        printed = capfd.readouterr()
        assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
        assert code == 2, printed.err
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.fixture
def broken(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "broken"))


def white(folder: Path, count: int, suffix: str = ".mp4", codec: str = "libx264") -> Path:
    return write_clip(folder / f"mask{count}{suffix}", [np.ones((*SIZE, 3))] * count, codec=codec)


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


# The model.


def test_no_bundle(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "is not a model bundle" in refused(model=tmp_path / "none")


class _Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_opened(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    assert "model.ckpt" in refused(model=tmp_path / "model.ckpt")  # `refused` sees that nothing was made


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.ckpt"])
def test_a_bundle_with_a_pickle_for_weights(refused: Callable[..., str], broken: Path, name: str) -> None:
    (broken / "codec" / "model.safetensors").unlink()
    (broken / "codec" / name).write_bytes(pickle.dumps(_Bomb(broken / "exploded")))
    assert f"codec/{name}" in refused(model=broken)


def test_unknown_model_part(refused: Callable[..., str], broken: Path) -> None:
    index = json.loads((broken / "model_index.json").read_text())
    index["parts"]["denoiser"] = "PerpetualMotion"
    (broken / "model_index.json").write_text(json.dumps(index))
    assert "unknown model part 'PerpetualMotion'" in refused(model=broken)


@pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape"])
def test_weights_that_do_not_fit(refused: Callable[..., str], broken: Path, change: str) -> None:
    path = broken / "denoiser" / "model.safetensors"
    state = load_file(path)
    key = "unet.conv_in.weight"
    if change == "missing":
        del state[key]
    elif change == "unexpected":
        key = "unet.conv_in.wait"
        state[key] = state["unet.conv_in.weight"].clone()
    else:
        state[key] = state[key][:, :-1].contiguous()
    save_file(state, path)
    assert f"key '{key}' {change}" in refused(model=broken)


def test_truncated_weights(refused: Callable[..., str], broken: Path) -> None:
    path = broken / "denoiser" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a whole safetensors file" in refused(model=broken)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 99}'])
def test_damaged_index(refused: Callable[..., str], broken: Path, text: str) -> None:
    (broken / "model_index.json").write_text(text)
    assert "model_index.json" in refused(model=broken)


# The output.


def test_output_below_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("in the way")
    assert "cannot write" in refused(output=tmp_path / "file.txt" / "hd.mp4")


def test_odd_size_with_subsampled_chroma(refused: Callable[..., str], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "odd.png"), np.zeros((31, 47, 3), np.uint8))
    line = refused("--scale", "1", source=tmp_path / "odd.png")
    assert "needs even sizes, not 47x31" in line
    assert "--height" not in line  # it would change what is kept
    assert "give --codec ffv1 and an .mkv as --output, or a folder for PNG files" in line


@pytest.mark.parametrize(("codec", "size"), [("libx264", (31, 47)), ("libx264", (32, 47)), ("prores_ks", (31, 47))])
def test_the_advice_for_an_odd_size_helps(tmp_path: Path, codec: str, size: tuple[int, int]) -> None:
    odd = size[0] * 3, size[1] * 3
    with pytest.raises(UserError) as refusal:
        VideoWriter(tmp_path / "hd.mov", odd, None, Fraction(25), codec=codec)
    height = re.search(
        r"by --height (\d+) in the place of --scale, or give --codec ffv1 and an .mkv", str(refusal.value)
    )
    assert height is not None
    VideoWriter(tmp_path / "hd.mov", output_size(size, None, int(height[1])), None, Fraction(25), codec=codec)
    VideoWriter(tmp_path / "hd.mkv", odd, None, Fraction(25), codec="ffv1")
    VideoWriter(tmp_path / "hd", odd, None, Fraction(25))


def test_a_container_that_cannot_hold_the_codec(refused: Callable[..., str], tmp_path: Path) -> None:
    assert ".webm files cannot hold libx264" in refused(output=tmp_path / "hd.webm")
    assert "unknown output format .xyz" in refused(output=tmp_path / "hd.xyz")


def test_a_clip_into_one_picture(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "holds one frame" in refused(output=tmp_path / "hd.png")


def test_a_folder_of_the_users(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.doc").write_text("years of work")
    assert "thesis.doc" in refused("--overwrite", output=tmp_path / "home")


def test_output_equal_to_input(refused: Callable[..., str], clip: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(clip, tmp_path / "clip.mp4"))
    assert "is the input" in refused("--overwrite", source=source, output=source)
    (tmp_path / "link.mp4").symlink_to(source)
    assert "is the input" in refused("--overwrite", source=source, output=tmp_path / "link.mp4")


def test_a_comparison_that_would_replace_the_input(refused: Callable[..., str], clip: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(clip, tmp_path / "hd_compare.mp4"))
    assert "is the input" in refused("--overwrite", "--compare", source=source, output=tmp_path / "hd.mp4")


def test_a_mask_that_the_output_would_replace(refused: Callable[..., str], tmp_path: Path) -> None:
    mask = white(tmp_path, FRAMES)
    assert "is the mask" in refused("--overwrite", "--mask", mask, output=mask)


# In a process of its own.


def test_no_traceback_in_a_process_of_its_own(bundle: Path, tmp_path: Path) -> None:
    done = spawn("infer.py", "--input", tmp_path / "none.mp4", "--output", tmp_path / "hd.mp4", "--model", bundle)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'none.mp4'} does not exist")
    assert (done.stdout, files_below(tmp_path)) == ("", set())


FULL = 20_000  # bytes; a limit on the size of a file in place of a full disk: the same call fails, at the same point


def test_no_space_left_in_a_process_of_its_own(bundle: Path, clip: Path, tmp_path: Path) -> None:
    done = spawn(
        "infer.py", "--input", clip, "--output", tmp_path / "hd.mkv", "--model", bundle, "--codec", "ffv1",
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no space left")
    assert (done.stdout, files_below(tmp_path)) == ("", set())


@pytest.mark.parametrize("name", ["hd.mp4", "hd.mkv", "frames"])
def test_no_space_left(refused: Callable[..., str], tmp_path: Path, name: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
    try:
        line = refused("--scale", 6, "--crf", 0, "--compare", output=tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith("error: no space left")
