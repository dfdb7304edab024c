"""A picture strip of one frame: input, result, reference. ``python -m eval.strip --help``."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.errors import UserError, run_cli
from ldm_video.core.files import atomic_path
from ldm_video.core.tensors import to_bytes
from ldm_video.video_io import FrameReader, parse_box
from ldm_video.video_io.masks import fill_boxes

BAR = 22  # height of the caption bar, in pixels


def main() -> None:
    """Read the command line, write one PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", metavar="CAPTION=FILE", help="panels from left to right")
    parser.add_argument("--frame", type=int, default=0)
    parser.add_argument("--crop", help="x,y,w,h in pixels of the largest clip; default: whole frames")
    parser.add_argument("--zoom", type=int, default=1, help="enlarge every panel, pixels stay squares")
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    arguments = parser.parse_args()
    named = [_split(clip) for clip in arguments.clips]
    frames = {caption: read_frame(path, arguments.frame) for caption, path in named}
    strip = make_strip(frames, parse_box(arguments.crop) if arguments.crop else None, arguments.zoom)
    with atomic_path(arguments.out) as temporary:
        cv2.imwrite(str(temporary), cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))
    print(arguments.out)


def read_frame(path: Path, index: int) -> Tensor:
    """Frame ``index`` of a clip, ``3 h w`` in [-1, 1]."""
    with FrameReader(path) as reader:
        frame = next(islice(reader, index, None), None)
    if frame is None:
        raise UserError(f"{path} has no frame {index}; choose a smaller --frame")
    return frame.pixels


def make_strip(frames: dict[str, Tensor], crop: tuple[int, int, int, int] | None = None, zoom: int = 1) -> np.ndarray:
    """Captioned panels side by side, ``h w 3`` uint8 RGB.

    Every frame ``3 h w`` is enlarged to the largest one's size with nearest neighbour, so that a small input shows its
    own pixels, then cut to ``crop`` (``x, y, w, h``).
    """
    size = max(((f.shape[1], f.shape[2]) for f in frames.values()), key=lambda s: s[0] * s[1])
    if crop is not None:
        fill_boxes([crop], size)  # raises where the crop misses the frame
    panels = []
    for caption, frame in frames.items():
        large = F.interpolate(frame[None], size=size, mode="nearest-exact")[0]  # 3 h w -> 3 H W
        pixels = to_bytes(large).permute(1, 2, 0).numpy()  # H W 3
        if crop is not None:
            x, y, w, h = crop
            pixels = pixels[max(y, 0) : y + h, max(x, 0) : x + w]
        pixels = np.repeat(np.repeat(pixels, zoom, axis=0), zoom, axis=1)
        bar = np.full((BAR, pixels.shape[1], 3), 255, np.uint8)
        cv2.putText(bar, caption, (6, BAR - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        panels.append(np.concatenate([bar, pixels]))
    return np.concatenate(panels, axis=1)


def _split(clip: str) -> tuple[str, Path]:
    caption, separator, path = clip.partition("=")
    if not separator or not caption:
        raise UserError(f"'{clip}' is not CAPTION=FILE, such as input=sd.mp4")
    return caption, Path(path)


if __name__ == "__main__":
    run_cli(main)
