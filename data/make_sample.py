"""Make the demo clip: ``python -m data.make_sample SOURCE data/samples``.

Simulates an old television recording of the source: blur, downscaling by 4, noise, a station logo in a corner and a
film scratch, then H.264 at SD quality. The mask (what to fill) and the reference are written beside it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from einops import rearrange

from data.cache import read_video
from data.degrade import DegradeConfig, degrade_pixels
from ldm_video.core.errors import UserError, run_cli
from ldm_video.core.tensors import to_bytes, to_signed
from ldm_video.video_io.subsample import RgbToYuv

SCALE = 4
MULTIPLE = 2 * SCALE  # of both sides: after downscaling, 4:2:0 needs even sides
TELEVISION = DegradeConfig(blur_sigma=(1.2, 1.2), noise_sigma=(3.0, 3.0))
CRF = "20"


def main() -> None:
    """Read the command line and write ``city_sd.mp4``, ``city_mask.png`` and ``city_reference.mp4``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help=f"the clean clip; its sides must be multiples of {MULTIPLE}")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    clip = read_video(arguments.source)  # t h w c
    if any(side % MULTIPLE for side in clip.shape[1:3]):
        raise UserError(
            f"{arguments.source} is {clip.shape[2]}x{clip.shape[1]}; both sides must be multiples of {MULTIPLE}"
        )
    arguments.folder.mkdir(parents=True, exist_ok=True)
    mask, paint = logo_and_scratch(clip.shape[1] // SCALE, clip.shape[2] // SCALE)
    lowres = damage(clip, mask, paint)
    encode(lowres, arguments.folder / "city_sd.mp4")
    cv2.imwrite(str(arguments.folder / "city_mask.png"), mask)
    reference = arguments.folder / "city_reference.mp4"
    if arguments.source.resolve() != reference.resolve():
        shutil.copyfile(arguments.source, reference)


def damage(clip: np.ndarray, mask: np.ndarray, paint: np.ndarray) -> np.ndarray:
    """Degrade ``t h w c`` uint8 to ``t h/4 w/4 c`` uint8, with ``paint`` where ``mask`` is white."""
    frames = rearrange(to_signed(torch.from_numpy(clip)), "t h w c -> t c h w")
    small = degrade_pixels(frames, SCALE, TELEVISION, np.random.default_rng(0))
    lowres = rearrange(to_bytes(small), "t c h w -> t h w c").numpy()
    return np.where(mask[..., None] > 0, paint, lowres)


def logo_and_scratch(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask ``h w`` (0 or 255) of the logo and the scratch, and their colours ``h w c``; both uint8."""
    mask = np.zeros((height, width), np.uint8)
    paint = np.zeros((height, width, 3), np.uint8)
    x, y, w, h = width - 34, 8, 26, 12
    cv2.rectangle(mask, (x, y), (x + w - 1, y + h - 1), 255, cv2.FILLED)
    paint[y : y + h, x : x + w] = (200, 30, 40)
    cv2.putText(paint, "CH4", (x + 2, y + h - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.32, (255, 255, 255), 1, cv2.LINE_AA)
    column = width // 3
    cv2.line(mask, (column, 0), (column + 1, height - 1), 255, 1)
    paint[mask > 0] = np.where(paint[mask > 0].any(axis=-1, keepdims=True), paint[mask > 0], (235, 235, 225))
    return mask, paint


def encode(frames: np.ndarray, path: Path) -> None:
    """Encode ``t h w c`` uint8 as H.264, BT.601 and tagged as such, like a typical SD file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": CRF})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = 5, 5, 6  # BT.470BG, as in PAL
        to_yuv = RgbToYuv(frames.shape[1:3], "rgb24", "yuv420p", "bt601")
        for array in frames:
            container.mux(stream.encode(to_yuv(array)))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    run_cli(main)
