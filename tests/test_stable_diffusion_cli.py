"""Stable Diffusion checkpoints from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import infer
from tests.cli_support import call, read_pixels
from tests.sd_checkpoints import write_pipeline, write_single_file

WriteVideo = Callable[..., Path]
FAST = ("--steps", 2, "--device", "cpu", "--codec", "ffv1", "segment=4")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sd")
    for kind in ("x4-upscaler", "sd15-inpainting", "sd15"):
        write_pipeline(root / kind, kind)
    return root


@pytest.fixture
def upscaled(checkpoints: Path, write_video: WriteVideo, tmp_path: Path) -> Callable[..., np.ndarray]:
    """``upscaled(*options) -> t h w 3`` of a clip of 16 x 32 with the x4-upscaler."""
    clip, number = write_video(tmp_path / "low.mp4", frames=2, size=(16, 32)), iter(range(99))

    def run(*options: object) -> np.ndarray:
        output = tmp_path / f"{next(number)}.mkv"
        model = checkpoints / "x4-upscaler"
        assert call(infer, "--input", clip, "--output", output, "--model", model, *FAST, *options) == 0
        return read_pixels(output)

    return run


def test_upscaling_with_a_prompt(upscaled: Callable[..., np.ndarray]) -> None:
    plain = upscaled("--prompt", "a cat", "--negative-prompt", "blurry", "--noise-level", 20)
    assert plain.shape == (2, 64, 128, 3)
    np.testing.assert_array_equal(
        upscaled("--prompt", "a cat", "--negative-prompt", "blurry"), plain
    )  # 20 is published
    for options in (("--prompt", "a dog"), ("--prompt", "a cat", "--noise-level", 200)):
        assert np.abs(upscaled("--negative-prompt", "blurry", *options) - plain).max() > 1


def test_inpainting_at_scale_one(checkpoints: Path, write_video: WriteVideo, tmp_path: Path) -> None:
    clip, output = write_video(tmp_path / "clip.mp4", frames=2, size=(64, 96)), tmp_path / "hd.mkv"
    mask = np.zeros((64, 96), np.uint8)
    mask[16:40, 24:64] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    options = ("--mask", tmp_path / "mask.png", "--prompt", "a cat", "--model", checkpoints / "sd15-inpainting")
    assert call(infer, "--input", clip, "--output", output, *options, *FAST) == 0  # scale 1 is the model's own
    before, after = read_pixels(clip), read_pixels(output)
    assert before.shape == after.shape
    kept = np.ones((64, 96), bool)
    kept[4:52, 12:76] = False
    assert np.abs(after - before)[:, kept].max() <= 2  # rounded once to YUV
    assert np.abs(after - before)[:, 20:36, 28:60].mean() > 5


def test_a_single_file_of_stable_diffusion_starts_from_the_input(
    checkpoints: Path, write_video: WriteVideo, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer").symlink_to(checkpoints / "sd15" / "tokenizer")
    file = write_single_file(tmp_path / "sd15.safetensors", checkpoints / "sd15", "sd15")
    clip, errors = write_video(tmp_path / "low.mp4", frames=1, size=(16, 32)), []
    for strength in (0.5, 1.0):
        output = tmp_path / f"{strength}.mkv"
        options = ("--prompt", "a cat", "--model", file, "--strength", strength, "colour=none")
        assert call(infer, "--input", clip, "--output", output, *options, *FAST) == 0
        errors.append(read_pixels(output))
    assert errors[0].shape == (1, 64, 128, 3)
    assert np.abs(errors[0] - errors[1]).mean() > 1


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("x4-upscaler", ("--noise-level", 351), "outside 0 to 350"),
        ("x4-upscaler", ("--noise-level", -1), "outside 0 to 350"),
        ("x4-upscaler", ("--strength", 0), "--strength"),
        ("x4-upscaler", ("--steps", 0), "--steps 0 leaves all to a decoder that sees the clip"),
        ("x4-upscaler", ("variant=bf16",), "variant"),
        ("sd15-inpainting", ("--noise-level", 20), "leave --noise-level out"),
        ("none.ckpt", (), "make it a .safetensors file with: python -c"),
    ],
)
def test_bad_options(
    kind: str,
    options: tuple[object, ...],
    words: str,
    checkpoints: Path,
    tiny_video: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = checkpoints / kind
    assert call(infer, "--input", tiny_video, "--output", tmp_path / "hd.mkv", "--model", model, *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert line.startswith("error: ")
