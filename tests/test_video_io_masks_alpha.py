"""Transparent WebM as a mask: what FFmpeg's own VP8 and VP9 decoders do not see."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from ldm_video.core.errors import UserError
from ldm_video.video_io import FrameReader, container, read_mask

SIZE = (48, 64)
VPX = pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])


def box(index: int) -> np.ndarray:
    """``h w`` bool, on the grid of 4:2:0."""
    mask = np.zeros(SIZE, bool)
    mask[10:22, 20 + 4 * index : 36 + 4 * index] = True
    return mask


def write_webm(path: Path, codec: str, frames: int = 4, announced: bool = True) -> Path:
    """White everywhere, and transparent outside of the box."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options={"auto-alt-ref": "0", "crf": "4", "b": "4M"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuva420p" if announced else "yuv420p"
        if announced:
            stream.metadata["alpha_mode"] = "1"
        for index in range(frames):
            layer = np.dstack([np.full((*SIZE, 3), 255, np.uint8), 255 * box(index).astype(np.uint8)])
            frame = av.VideoFrame.from_ndarray(layer, format="rgba").reformat(format=stream.pix_fmt)
            frame.pts = index
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@VPX
def test_what_is_transparent_in_webm_is_kept(tmp_path: Path, codec: str) -> None:
    with read_mask(write_webm(tmp_path / "m.webm", codec), None, SIZE, 4) as mask:
        for index in (0, 1, 3, 2):
            assert np.array_equal(mask.at(index)[0].numpy(), box(index))
        mask.finish(4)


@VPX
def test_without_a_decoder_that_sees_it_the_mask_is_refused(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in builds of FFmpeg without libvpx; a clip, and a mask that has no alpha, need none."""
    path, opaque = write_webm(tmp_path / "m.webm", codec), write_webm(tmp_path / "o.webm", codec, announced=False)
    monkeypatch.setattr(container, "_SEE_ALPHA", {"vp8": "no_such_decoder", "vp9": "no_such_decoder"})
    with pytest.raises(UserError, match=r"m\.webm has transparency that cannot be read .* PNG files or as ProRes 4444"):
        read_mask(path, None, SIZE, 4)
    with read_mask(opaque, None, SIZE, 4) as mask:
        assert mask.at(0).min() == 1
    with FrameReader(path) as reader:
        assert [int(frame.pixels.min()) for frame in reader] == [1] * 4
