"""Shared by frame-by-frame methods: reading with deinterlacing as flagged, upscaling, lossless writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from eval.file_states import REPOSITORY, code_digest
from eval.inputs import LOSSLESS
from ldm_video.core.tensors import to_bytes, to_signed
from ldm_video.video_io.masks import read_mask
from ldm_video.video_io.probe import DEFAULT_RATE, probe
from ldm_video.video_io.reader import FrameReader
from ldm_video.video_io.writer import VideoWriter

# The resize kernel smears what is painted in the hole over two low-res pixels, and a codec over a little more: a method
# that starts right at the mask's border would inpaint with that paint.
GROW_LOWRES_PIXELS = 3


def shared_code(peer: str | None = None) -> str:
    """Return a digest for a method's ``identity``: of this file, of the video I/O code, and of the peer's own file.

    ``peer``: its ``__file__``, in :mod:`eval.peers`.
    """
    own = [f"eval/peers/{Path(peer).name}"] if peer else []
    return code_digest(REPOSITORY, "eval/framewise.py", "ldm_video/video_io/*.py", *own)


def enlarge(frame: np.ndarray, scale: int, kernel: int = cv2.INTER_CUBIC) -> np.ndarray:
    """Resize ``h w 3`` uint8 to ``scale`` times its size."""
    return cv2.resize(frame, (frame.shape[1] * scale, frame.shape[0] * scale), interpolation=kernel)


def grow(hole: np.ndarray, scale: int) -> np.ndarray:
    """Dilate a hole ``H W`` uint8 in {0, 1} to cover everything that may contain some of its paint."""
    reach = GROW_LOWRES_PIXELS * scale
    return cv2.dilate(hole, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1)))


def open_frames(lowres: Path) -> FrameReader:
    """Open the input; a stream flagged as interlaced is deinterlaced (bwdif), one frame per frame.

    The flag is trusted and pixels are not analysed: a baseline must not change because a clip is noisy.
    """
    return FrameReader(lowres, deinterlace="on" if probe(lowres).interlaced else "off")


def open_output(lowres: Path, scale: int, output: Path) -> VideoWriter:
    """Open a lossless file, ``scale`` times the size of ``lowres``, at its rate."""
    info = probe(lowres)
    size = (info.height * scale, info.width * scale)
    output.parent.mkdir(parents=True, exist_ok=True)
    return VideoWriter(output, size, None, info.rate or DEFAULT_RATE, codec=LOSSLESS, overwrite=True)


def to_image(pixels: Tensor) -> np.ndarray:
    """Convert ``c h w`` in [-1, 1] to ``h w c`` uint8."""
    return rearrange(to_bytes(pixels), "c h w -> h w c").contiguous().numpy()


def to_pixels(image: np.ndarray) -> Tensor:
    """Convert ``h w c`` uint8 to ``c h w`` in [-1, 1]."""
    return to_signed(rearrange(torch.from_numpy(np.ascontiguousarray(image)), "h w c -> c h w"))


def frame_by_frame(
    lowres: Path, mask: Path | None, scale: int, output: Path, one: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Run ``one(frame h w 3, hole H W) -> H W 3`` (uint8; hole in {0, 1} at the output's size) on every frame."""
    writer = open_output(lowres, scale, output)
    with open_frames(lowres) as reader, read_mask(mask, None, writer.size, None) as holes, writer:
        for frame in reader:
            hole = holes.at(frame.index)[0].byte().numpy()
            writer.write(to_pixels(one(to_image(frame.pixels), hole)))
