"""What the tests of tar shards share: clips as bytes, three small shards, and the data set on them."""

from __future__ import annotations

import io
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import webdataset

from data.shards import ShardDataset
from tests.once_support import once


def picture(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def clip_bytes(seed: int, frames: int = 10, size: tuple[int, int] = (110, 140), **options: str) -> bytes:
    """H.264 in MP4: a picture that moves 2 pixels a frame; B-frames and far key frames unless said otherwise."""
    buffer, still = io.BytesIO(), picture(size[0], size[1] + 2 * frames, seed)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4", "preset": "veryfast", **options})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1  # BT.709, limited
        for index in range(frames):
            view = np.ascontiguousarray(still[:, 2 * index : 2 * index + size[1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def dataset(root: Path | str, folder: Path, **options: object) -> ShardDataset:
    defaults = {"frames": 3, "size": 64, "cache": folder / "cache"}
    return ShardDataset(root, **{**defaults, **options})  # type: ignore[arg-type]


@once
def write_shards(factory: pytest.TempPathFactory) -> Path:
    """Three shards of three, three and one clips; every second clip has a caption. Made once, for all to read."""
    folder = factory.mktemp("shards")
    with webdataset.ShardWriter(str(folder / "clips-%03d.tar"), maxcount=3, verbose=0, mtime=0) as writer:
        for number in range(7):
            sample = {"__key__": f"film/{number:02d}", "mp4": clip_bytes(number), "json": {"number": number}}
            writer.write(sample | ({"txt": f"picture {number}\n"} if number % 2 else {}))
    return folder
