"""Write captioned panels side by side, as a picture or animation: ``python -m eval.strip --help``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.core.files import atomic_path
from ldm_video.core.tensors import to_bytes
from ldm_video.video_io import FrameReader, parse_box, probe
from ldm_video.video_io.masks import fill_boxes
from ldm_video.video_io.probe import DEFAULT_RATE

BAR = 22  # height of the caption bar, in pixels
WEBP_QUALITY = 70


def main() -> None:
    """Read the command line and write one picture or animation."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", metavar="CAPTION=FILE", help="panels from left to right")
    parser.add_argument("--frame", type=int, default=0, help="the first one shown")
    parser.add_argument("--frames", type=int, default=1, help="more than 1: an animation, --out ends in .webp")
    parser.add_argument("--crop", help="x,y,w,h in pixels of the largest clip; default: whole frames")
    parser.add_argument("--zoom", type=int, default=1, help="enlarge every panel, pixels stay squares")
    parser.add_argument("--out", type=Path, required=True, help="a .png file, or .webp for an animation")
    arguments = parser.parse_args()
    if arguments.frame < 0 or arguments.frames < 1 or arguments.zoom < 1:
        raise UserError("--frame counts from 0, --frames and --zoom from 1; correct the one that is less")
    if arguments.out.suffix not in ((".webp",) if arguments.frames > 1 else (".png", ".jpg", ".jpeg")):
        raise UserError(f"{arguments.out}: one frame is a .png, several (--frames N) are a .webp; correct one of them")
    named = dict(_split(clip) for clip in arguments.clips)
    if len(named) < len(arguments.clips):
        raise UserError("two panels have the same caption; give each its own")
    crop = parse_box(arguments.crop) if arguments.crop else None
    clips = [read_frames(path, arguments.frame, arguments.frames) for path in named.values()]
    strips = [
        make_strip(dict(zip(named, frames, strict=True)), crop, arguments.zoom) for frames in zip(*clips, strict=True)
    ]
    pictures = [cv2.cvtColor(strip, cv2.COLOR_RGB2BGR) for strip in strips]
    with atomic_path(arguments.out) as temporary:
        if len(pictures) == 1:
            cv2.imwrite(str(temporary), pictures[0])
        else:
            _write_animation(temporary, pictures, next(iter(named.values())))
    print(arguments.out)


def read_frames(path: Path, first: int, count: int) -> list[Tensor]:
    """Return frames ``first`` to ``first + count - 1`` of a clip, each ``3 h w`` in [-1, 1].

    Raises ``UserError`` if the clip ends earlier.
    """
    with FrameReader(path) as reader:
        frames = [frame.pixels for frame in islice(reader, first, first + count)]
    if len(frames) < count:
        raise UserError(f"{path} has no frame {first + len(frames)}; choose smaller --frame or --frames")
    return frames


def _write_animation(path: Path, pictures: Sequence[np.ndarray], clip: Path) -> None:
    """Write an endlessly looping WebP of pictures ``h w 3`` uint8 BGR at the frame rate of ``clip``."""
    animation = cv2.Animation()
    animation.frames = list(pictures)
    animation.durations = [round(1000 / (probe(clip).rate or DEFAULT_RATE))] * len(pictures)
    cv2.imwriteanimation(str(path), animation, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])


def make_strip(frames: dict[str, Tensor], crop: tuple[int, int, int, int] | None = None, zoom: int = 1) -> np.ndarray:
    """Place captioned panels side by side, ``h w 3`` uint8 RGB.

    Every frame ``3 h w`` in [-1, 1] is resized to the largest one's size with nearest neighbour, so that a small input
    shows its own pixels, then cropped to ``crop`` (``x, y, w, h``). Raises ``UserError`` if the crop misses the frame.
    """
    size = max(((f.shape[1], f.shape[2]) for f in frames.values()), key=lambda s: s[0] * s[1])
    if crop is not None:
        fill_boxes([crop], size)  # raises if the crop misses the frame
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
