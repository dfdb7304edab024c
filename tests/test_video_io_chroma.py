"""Where colour lies: beside its luma, whatever the codec, to a small part of a pixel."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from data.degradation.codec import ENCODERS as ROUND_TRIPS
from data.degradation.codec import codec_round_trip, interlaced_round_trip
from eval.broadcast import weave
from ldm_video.models.bundle import load_bundle
from ldm_video.pipeline.arguments import SHIPPED
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.video_io import FrameReader, VideoWriter, probe
from ldm_video.video_io.colour_shift import shift_colour
from ldm_video.video_io.convert import ToVideoFrame
from ldm_video.video_io.encoders import ENCODERS
from ldm_video.video_io.subsample import RgbToYuv
from tests.video_io_support import write_clip, yuv_frame

HEIGHT, WIDTH, PERIOD = 96, 96, 16
COLUMNS = np.arange(WIDTH)
WAVE = np.sin(2 * np.pi * COLUMNS / PERIOD)
INNER = slice(PERIOD, WIDTH - PERIOD)  # whole periods


def stripes() -> np.ndarray:
    """Upright waves of red, ``h w 3`` uint8."""
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    picture[..., 0] = np.round(128 + 60 * WAVE)
    return picture


def lying_stripes() -> np.ndarray:
    """The same from top to bottom."""
    return np.ascontiguousarray(stripes().swapaxes(0, 1))


def place(values: np.ndarray, columns: np.ndarray) -> float:
    """How many pixels to the right of :data:`WAVE` a wave sampled at ``columns`` is."""
    phase = np.angle(np.exp(-2j * np.pi * columns / PERIOD) @ (values - values.mean()))
    turned = (-np.pi / 2 - phase + np.pi) % (2 * np.pi) - np.pi  # of a sine the phase is -90 degrees
    return turned * PERIOD / (2 * np.pi)


def colour_place(picture: np.ndarray) -> float:
    """Of the red less the green of ``h w 3``."""
    difference = (picture[..., 0].astype(float) - picture[..., 1]).mean(axis=0)
    return place(difference[INNER], COLUMNS[INNER])


def height_of_colour(picture: np.ndarray) -> float:
    """How many lines below :func:`lying_stripes` the colour is."""
    return colour_place(picture.swapaxes(0, 1))


def as_pixels(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1) / 127.5 - 1


def test_the_measure_finds_a_shift() -> None:
    moved = np.sin(2 * np.pi * (COLUMNS - 0.5) / PERIOD)
    assert place(moved[INNER], COLUMNS[INNER]) == pytest.approx(0.5, abs=1e-6)
    assert colour_place(stripes()) == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv422p10le", "yuv444p10le"])
def test_a_chroma_sample_stands_beside_its_luma_sample(pix_fmt: str) -> None:
    pixels = torch.from_numpy(stripes()).permute(2, 0, 1) / 127.5 - 1
    frame = ToVideoFrame((HEIGHT, WIDTH), pix_fmt)(pixels)
    plane = frame.planes[2]  # Cr
    samples = np.frombuffer(bytes(plane), np.uint16 if "10" in pix_fmt else np.uint8).reshape(plane.height, -1)
    step = WIDTH // plane.width
    inner = slice(PERIOD // step, (WIDTH - PERIOD) // step)
    found = samples[:, : plane.width].mean(axis=0)[inner]
    assert place(found, step * np.arange(plane.width)[inner]) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv422p10le", "yuv444p10le"])
def test_a_chroma_sample_stands_in_the_middle_of_its_lines(pix_fmt: str) -> None:
    plane = ToVideoFrame((HEIGHT, WIDTH), pix_fmt)(as_pixels(lying_stripes())).planes[2]  # Cr
    samples = np.frombuffer(bytes(plane), np.uint16 if "10" in pix_fmt else np.uint8).reshape(plane.height, -1)
    step = HEIGHT // plane.height
    inner = slice(PERIOD // step, (HEIGHT - PERIOD) // step)
    lines = step * np.arange(plane.height) + (step - 1) / 2  # of two, half a line below the first
    assert place(samples[:, : plane.width].mean(axis=1)[inner], lines[inner]) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("codec", list(ENCODERS))
def test_written_colour_is_read_where_it_was(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("a.mov" if codec == "prores_ks" else "a.mkv")
    with VideoWriter(path, (HEIGHT, WIDTH), None, Fraction(25), codec=codec, crf=4) as writer:
        for _ in range(3):
            writer.write(torch.from_numpy(stripes()).permute(2, 0, 1) / 127.5 - 1)
    with FrameReader(path) as reader:
        frame = list(reader)[1].pixels.permute(1, 2, 0).numpy()
    assert colour_place(frame) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("codec", list(ENCODERS))
def test_written_colour_is_read_at_the_height_where_it_was(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("a.mov" if codec == "prores_ks" else "a.mkv")
    with VideoWriter(path, (HEIGHT, WIDTH), None, Fraction(25), codec=codec, crf=4) as writer:
        for _ in range(3):
            writer.write(as_pixels(lying_stripes()))
    with FrameReader(path) as reader:
        frame = list(reader)[1].pixels.permute(1, 2, 0).numpy()
    assert height_of_colour(frame) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("mpeg2video", ".ts"), ("libsvtav1", ".mkv")])
def test_colour_is_read_at_its_height(tmp_path: Path, codec: str, suffix: str) -> None:
    """Of frames that are made by the standard's formulas, whether the decoder tags them or not."""
    options = {"mpeg2video": {"qmin": "1", "qmax": "2"}, "libsvtav1": {"crf": "10"}}.get(codec)
    frames = [yuv_frame(lying_stripes() / 255) for _ in range(3)]
    with FrameReader(write_clip(tmp_path / f"a{suffix}", frames, codec=codec, options=options)) as reader:
        frame = next(reader).pixels.permute(1, 2, 0).numpy()
    assert height_of_colour(frame) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [("ffv1", "yuv422p10le", ".mkv"), ("v210", "yuv422p10le", ".mov"), ("ffvhuff", "yuv422p", ".avi"),
     ("rawvideo", "uyvy422", ".avi"), ("mpeg2video", "yuv422p", ".ts")],
)  # fmt: skip
def test_captures_in_422_have_their_chroma_on_the_left(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    """As the standards say, whether the decoder does (MPEG-2) or not."""
    planar = "yuv422p" if pix_fmt == "uyvy422" else pix_fmt
    frame = RgbToYuv((HEIGHT, WIDTH), "rgb24", planar, "bt601")(stripes()).reformat(format=pix_fmt)
    clip = write_clip(tmp_path / f"a{suffix}", [frame] * 3, codec=codec)
    with FrameReader(clip) as reader:
        assert colour_place(next(reader).pixels.permute(1, 2, 0).numpy()) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("position", ["unknown", "left", "topleft"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_av1_has_its_chroma_on_the_left(tmp_path: Path, suffix: str, position: str) -> None:
    frame = RgbToYuv((HEIGHT, WIDTH), "rgb24", "yuv420p", "bt601")(stripes())
    options = {"crf": "10", "svtav1-params": f"chroma-sample-position={position}"}
    clip = write_clip(tmp_path / f"a{suffix}", [frame] * 3, codec="libsvtav1", options=options)
    assert probe(clip).left_untagged == (position == "unknown")
    with FrameReader(clip) as reader:
        assert colour_place(next(reader).pixels.permute(1, 2, 0).numpy()) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("codec", list(ROUND_TRIPS))
def test_the_trainings_codecs_leave_colour_where_it_was(codec: str) -> None:
    assert colour_place(codec_round_trip(np.stack([stripes()] * 3), codec, 12)[1]) == pytest.approx(0, abs=0.05)
    lying = codec_round_trip(np.stack([lying_stripes()] * 3), codec, 12)[1]
    assert height_of_colour(lying) == pytest.approx(0, abs=0.05)


def test_so_does_the_interlaced_one() -> None:
    assert colour_place(interlaced_round_trip(np.stack([stripes()] * 4), 12)[1]) == pytest.approx(0, abs=0.05)
    lying = interlaced_round_trip(np.stack([lying_stripes()] * 4), 12)[1]
    assert height_of_colour(lying) == pytest.approx(0, abs=0.05)


def test_fields_of_the_broadcast_track_have_their_chroma_on_the_left() -> None:
    (frame,) = weave([stripes(), stripes()])
    plane = frame.planes[2]
    samples = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width].mean(axis=0)
    inner = slice(PERIOD // 2, (WIDTH - PERIOD) // 2)
    assert place(samples[inner], 2 * np.arange(plane.width)[inner]) == pytest.approx(0, abs=0.05)


def test_fields_of_the_broadcast_track_have_their_chroma_at_its_height() -> None:
    """A quarter of a field's line above and below the middle, so that those of both are a line apart (H.262 6-3)."""
    (frame,) = weave([lying_stripes(), lying_stripes()])
    plane = frame.planes[2]
    samples = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width].mean(axis=1)
    inner = slice(PERIOD // 2, (HEIGHT - PERIOD) // 2)
    lines = 2 * np.arange(plane.height)[inner] + 0.5
    assert place(samples[inner], lines) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("pixels", [-0.5, 0.25, 1.0])
def test_colour_is_moved_and_luma_is_not(pixels: float) -> None:
    frames = torch.from_numpy(stripes()).permute(2, 0, 1) / 127.5 - 1
    moved = shift_colour(frames, pixels)
    assert colour_place(moved.permute(1, 2, 0).numpy()) == pytest.approx(pixels, abs=0.02)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close((moved * weights).sum(0), (frames * weights).sum(0), atol=2e-6, rtol=0)


def test_colour_is_not_moved_by_nothing_nor_by_more_than_a_pixel() -> None:
    frames = torch.rand(2, 3, 4, 8)
    assert shift_colour(frames, 0.0) is frames
    with pytest.raises(ValueError, match="a pixel at most"):
        shift_colour(frames, 1.5)


def test_a_converted_frame_leaves_its_time_to_the_encoder() -> None:
    frame = RgbToYuv((HEIGHT, WIDTH), "rgb24", "yuv420p", "bt601")(stripes())
    assert frame.pts is None and frame.time_base is None


def test_the_shipped_model_leaves_colour_where_the_input_has_it() -> None:
    """It learned from clips whose colour was half a pixel off, and would move what is in its place."""
    low = torch.from_numpy(stripes()[:48]).permute(2, 0, 1)[None] / 127.5 - 1  # 1 3 h w
    model = load_bundle(SHIPPED)
    assert model.codec.colour_shift == -0.5
    settings = RestoreSettings(steps=0, fidelity=model.sampling.fidelity)
    result = Restorer(model, settings)(low, torch.zeros(1, 1, 192, 4 * WIDTH), [0])[0].numpy()  # 3 H W
    difference = (result[0] - result[1]).mean(axis=0)[4 * PERIOD : -4 * PERIOD]
    columns = (np.arange(4 * WIDTH)[4 * PERIOD : -4 * PERIOD] + 0.5) / 4 - 0.5  # in low-res pixels
    assert place(difference, columns) == pytest.approx(0, abs=0.06)  # a quarter of a pixel of the result


def test_the_shipped_model_gives_a_smooth_change_of_colour_its_place() -> None:
    """From blue to red across the frame, of one luma: half a pixel aside, all of it is off by the same 1.8 levels."""

    def change(height: int, width: int) -> torch.Tensor:
        red = 0.9 * ((torch.arange(width) + 0.5) / width * 2 - 1)
        return torch.stack([red, -red * (0.299 - 0.114) / 0.587, -red])[None, :, None].expand(1, 3, height, width)

    restorer = Restorer(load_bundle(SHIPPED), RestoreSettings(steps=0))
    result = restorer(change(48, 64), torch.zeros(1, 1, 192, 256), [0])
    off = (result - change(192, 256))[..., 40:-40] * 127.5  # 1 3 H w
    assert off.mean(dim=(0, 2, 3)).abs().max() < 0.3
