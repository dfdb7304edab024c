"""Colour: the standards' formulas against what reading and writing give."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ldm_video.video_io import FrameReader, VideoWriter, probe
from ldm_video.video_io.colour import LUMA_WEIGHTS
from ldm_video.video_io.convert import ToVideoFrame, colour_of, to_pixels
from tests.video_io_support import rgb_to_yuv, write_clip, yuv_frame, yuv_to_rgb

H273 = {"bt601": 6, "bt709": 1, "bt2020": 9, "smpte240m": 7}
RANGES = {"limited": 1, "full": 2}
COLOURS = np.array(list(itertools.product((0.0, 0.3, 0.65, 1.0), repeat=3)))  # 64 patches, black and white included
PATCH = 16


def patches() -> np.ndarray:
    """8 rows of 8 patches, ``128 128 3`` in [0, 1]."""
    return np.kron(COLOURS.reshape(8, 8, 3), np.ones((PATCH, PATCH, 1)))


def centres(pixels: torch.Tensor) -> np.ndarray:
    """The value at the middle of each patch, ``64 3`` in [0, 1]: away from chroma edges."""
    return ((pixels[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH] + 1) / 2).permute(1, 2, 0).reshape(-1, 3).numpy()


def test_formulas_at_known_points() -> None:
    """BT.709-6 3.5 and BT.601-7 2.5.3: levels 16/235 and 16..240; a hand-computed red in both."""
    assert rgb_to_yuv(np.array([1.0, 1, 1]), "bt709", "limited") == pytest.approx([235, 128, 128])
    assert rgb_to_yuv(np.array([0.0, 0, 0]), "bt601", "limited") == pytest.approx([16, 128, 128])
    assert rgb_to_yuv(np.array([1.0, 1, 1]), "bt709", "limited", 10) == pytest.approx([940, 512, 512])
    assert rgb_to_yuv(np.array([1.0, 1, 1]), "bt601", "full") == pytest.approx([255, 128, 128])
    assert rgb_to_yuv(np.array([1.0, 0, 0]), "bt601", "limited") == pytest.approx([81.481, 90.203, 240], abs=1e-3)
    assert rgb_to_yuv(np.array([1.0, 0, 0]), "bt709", "limited") == pytest.approx([62.559, 102.336, 240], abs=1e-3)


@pytest.mark.parametrize("matrix", list(LUMA_WEIGHTS))
@pytest.mark.parametrize("range_", ["limited", "full"])
def test_formulas_invert_each_other(matrix: str, range_: str) -> None:
    there = rgb_to_yuv(COLOURS, matrix, range_, 10)
    assert np.abs(yuv_to_rgb(there, matrix, range_, 10) - COLOURS).max() < 1e-12


@pytest.mark.parametrize("matrix", list(H273))
@pytest.mark.parametrize("range_", ["limited", "full"])
@pytest.mark.parametrize("bits", [8, 10])
def test_frame_to_pixels_is_the_standard(matrix: str, range_: str, bits: int) -> None:
    """swscale, as told by us, within 0.05/255 of the formulas: no rounding to 8 bits on the way."""
    frame = yuv_frame(patches(), matrix, range_, bits)
    frame.colorspace, frame.color_range = H273[matrix], RANGES[range_]
    colour = colour_of(frame)
    assert (colour.matrix, colour.range, colour.assumed) == (matrix, range_, False)
    codes = rgb_to_yuv(COLOURS, matrix, range_, bits).round().clip(0, 2**bits - 1)
    want = yuv_to_rgb(codes, matrix, range_, bits).clip(0, 1)
    assert np.abs(centres(to_pixels(frame, colour, 128, 128)) - want).max() * 255 < 0.05


@pytest.mark.parametrize(
    ("pix_fmt", "peak"), [("rgb24", 255), ("gbrp", 255), ("gbrp10le", 1023), ("gbrp12le", 4095), ("rgb48le", 65535)]
)
def test_rgb_sources_pass_unchanged(pix_fmt: str, peak: int) -> None:
    samples = (patches() * peak).round().astype(np.uint8 if peak == 255 else np.uint16)
    frame = av.VideoFrame.from_ndarray(samples, format=pix_fmt)
    got = centres(to_pixels(frame, colour_of(frame), 128, 128))
    assert np.abs(got - (COLOURS * peak).round() / peak).max() * 255 < 0.1


@pytest.mark.parametrize(("pix_fmt", "low", "high"), [("gray", 0, 255), ("gray10le", 0, 1023)])
def test_grey_sources_reach_black_and_white(pix_fmt: str, low: int, high: int) -> None:
    for code, want in ((low, -1.0), (high, 1.0)):
        frame = av.VideoFrame(16, 16, pix_fmt)
        samples = np.full(16 * frame.planes[0].line_size, code, np.uint8 if high == 255 else np.uint16)
        frame.planes[0].update(samples.tobytes()[: frame.planes[0].buffer_size])
        assert to_pixels(frame, colour_of(frame), 16, 16).unique().tolist() == pytest.approx([want])


@pytest.mark.parametrize("pix_fmt", ["grayf32le", "gbrpf32le"])
@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 1.0])
def test_floats_are_read_as_they_are(tmp_path: Path, pix_fmt: str, value: float) -> None:
    """Mattes come as EXR of one plane."""
    shape = (32, 48) if pix_fmt == "grayf32le" else (32, 48, 3)
    frame = av.VideoFrame.from_ndarray(np.full(shape, value, np.float32), format=pix_fmt)
    encoder = av.CodecContext.create("exr", "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = 32, 48, pix_fmt, Fraction(1, 25)
    path = tmp_path / "a.exr"
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    with FrameReader(path) as reader:
        assert np.abs((next(reader).pixels.numpy() + 1) / 2 - value).max() < 1e-3


@pytest.mark.parametrize(("pix_fmt", "unit"), [("gray", 1), ("gray10le", 4), ("gray12le", 16), ("gray16le", 256)])
def test_grey_with_video_levels_reaches_black_and_white(pix_fmt: str, unit: int) -> None:
    for code, want in ((16, -1.0), (235, 1.0), (125.5, 0.0)):
        frame = av.VideoFrame(16, 16, pix_fmt)
        kind = np.uint8 if unit == 1 else np.uint16
        samples = np.full(16 * frame.planes[0].line_size, round(code * unit), kind)
        frame.planes[0].update(samples.tobytes()[: frame.planes[0].buffer_size])
        frame.color_range = RANGES["limited"]
        got = to_pixels(frame, colour_of(frame), 16, 16).unique()
        assert got.tolist() == pytest.approx([want], abs=1 / 219)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("range_", ["limited", "full"])
def test_tagged_file(tmp_path: Path, matrix: str, range_: str) -> None:
    tags = {"colorspace": H273[matrix], "color_range": RANGES[range_]}
    clip = write_clip(
        tmp_path / "a.mp4",
        [yuv_frame(patches(), matrix, range_)],
        tags=tags,
        options={"crf": "0", "profile": "high444"},
    )
    assert (probe(clip).colour.matrix, probe(clip).colour.range) == (matrix, range_)
    with FrameReader(clip) as reader:
        got = centres(next(reader).pixels)
    assert np.abs(got - COLOURS).max() * 255 < 2


@pytest.mark.parametrize(
    ("size", "matrix"),
    [((576, 64), "bt601"), ((720, 64), "bt709"), ((64, 1278), "bt601"), ((64, 1280), "bt709")],
)
def test_untagged_file_goes_by_its_size(tmp_path: Path, size: tuple[int, int], matrix: str) -> None:
    colour = np.array([0.8, 0.3, 0.1])
    frame = yuv_frame(np.broadcast_to(colour, (*size, 3)), matrix)
    clip = write_clip(tmp_path / "a.mp4", [frame], options={"crf": "0"})
    info = probe(clip)
    assert info.colour.matrix == matrix and info.colour.assumed
    with FrameReader(clip) as reader:
        got = (next(reader).pixels.mean((1, 2)).numpy() + 1) / 2
    assert np.abs(got - colour).max() * 255 < 2


@pytest.mark.parametrize(
    ("size", "matrix", "range_"),
    [((720, 64), "bt709", "limited"), ((96, 64), "bt709", "limited"), ((96, 64), "bt601", "full")],
)
def test_colour_that_changes_midway_is_fitted_to_the_first(
    tmp_path: Path, size: tuple[int, int], matrix: str, range_: str
) -> None:
    """As in recordings of a channel that shows SD and HD."""
    colour, joined = np.array([0.8, 0.3, 0.1]), tmp_path / "joined.ts"
    with joined.open("wb") as file:
        for shape, said, levels in (((96, 64), "bt601", "limited"), (size, matrix, range_)):
            frame = yuv_frame(np.broadcast_to(colour, (*shape, 3)), said, levels)
            tags = {"colorspace": H273[said], "color_range": RANGES[levels]}
            options = {"crf": "1", "bf": "0"}
            file.write(write_clip(tmp_path / "a.ts", [frame] * 8, tags=tags, options=options).read_bytes())
    with FrameReader(joined) as reader:
        means = np.stack([(frame.pixels.mean((1, 2)).numpy() + 1) / 2 for frame in reader])
    assert len(means) == 16 and np.abs(means - colour).max() * 255 < 2.5
    assert any("format changes midway" in line for line in reader.warnings)


def test_ten_bit_input_keeps_its_precision(tmp_path: Path) -> None:
    """A ramp of 10-bit luma codes: 8 bits would give a quarter of the distinct values."""
    ramp = np.linspace(0.2, 0.6, 512)[None, :, None] * np.ones((32, 1, 3))
    clip = write_clip(tmp_path / "a.mkv", [yuv_frame(ramp, bits=10)], codec="ffv1")
    assert probe(clip).bit_depth == 10
    with FrameReader(clip) as reader:
        row = (next(reader).pixels[1, 16].numpy() + 1) / 2
    codes = rgb_to_yuv(ramp[16], "bt601", "limited", 10).round()
    want = yuv_to_rgb(codes, "bt601", "limited", 10)[:, 1]
    assert len(np.unique(row)) == len(np.unique(codes[:, 0])) > 300
    assert np.abs(row - want).max() * 1023 < 0.2


@pytest.mark.parametrize(
    ("pix_fmt", "bits", "step"), [("yuv420p", 8, 2), ("yuv422p10le", 10, 2), ("yuv444p10le", 10, 1)]
)
def test_pixels_to_frame_is_bt709_limited(pix_fmt: str, bits: int, step: int) -> None:
    pixels = torch.from_numpy(patches()).permute(2, 0, 1) * 2 - 1
    to_frame = ToVideoFrame((pixels.shape[1], pixels.shape[2]), pix_fmt)
    to_frame(-pixels)  # nothing of a frame before is left
    frame = to_frame(pixels)
    want = rgb_to_yuv(COLOURS, "bt709", "limited", bits).reshape(8, 8, 3)
    for index, plane in enumerate(frame.planes):
        samples = np.frombuffer(bytes(plane), np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)
        x_step = step if index else 1
        y_step = 2 if index and pix_fmt == "yuv420p" else 1
        got = samples[PATCH // 2 // y_step :: PATCH // y_step, PATCH // 2 // x_step : 128 // x_step : PATCH // x_step]
        assert np.abs(got - want[..., index]).max() < 0.8  # codes; half is rounding
    assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "prores_ks", "ffv1"])
def test_written_file_is_tagged_and_reads_back_the_same(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("a.mov" if codec == "prores_ks" else "a.mkv" if codec == "ffv1" else "a.mp4")
    pixels = torch.from_numpy(patches()).permute(2, 0, 1) * 2 - 1
    with VideoWriter(path, (128, 128), None, Fraction(25), codec=codec, crf=2, preset="veryfast") as writer:
        for _ in range(2):
            writer.write(pixels)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        frame = next(container.decode(stream))
        for tagged in (context, frame):
            assert (tagged.colorspace, tagged.color_range, tagged.color_primaries, tagged.color_trc) == (1, 1, 1, 1)
        assert stream.sample_aspect_ratio in (1, None)
        assert frame.format.name == writer._encoder.pix_fmt
    with FrameReader(path) as reader:
        frames = list(reader)
    assert len(frames) == 2
    # 8-bit codes are dithered, so that gradients do not band: a patch's colour is its mean, edges left out.
    inner = frames[1].pixels.reshape(3, 8, PATCH, 8, PATCH)[:, :, 4:12, :, 4:12].mean((2, 4))  # c y x
    got = (inner.permute(1, 2, 0).reshape(-1, 3).numpy() + 1) / 2
    assert np.abs(got - COLOURS).max() * 255 < (0.6 if codec == "ffv1" else 2)
