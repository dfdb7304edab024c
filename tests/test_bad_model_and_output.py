"""Models that ``infer.py`` cannot use and outputs that it cannot write: one line on stderr, exit code 2."""

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

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ldm_video.core.errors import UserError
from ldm_video.pipeline.sizes import output_size
from ldm_video.video_io import VideoWriter
from tests.bad_input_support import FRAMES, refusal, small_clip, white
from tests.cli_support import files_below, spawn


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip(tmp_path_factory)


@pytest.fixture
def refused(bundle: Path, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(*options)``: infer.py ends with code 2, one line and no new file; returns the line."""
    return refusal(bundle, clip, tmp_path, capfd)


@pytest.fixture
def broken(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(bundle, tmp_path / "broken"))


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
