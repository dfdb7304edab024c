"""Reading: counts, times, orientation, pixel shape, folders, stills, damage."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from ldm_video.core.errors import UserError
from ldm_video.video_io import FrameReader, probe
from tests.video_io_support import packet_times, pan, texture, write_clip

NTSC = Fraction(30000, 1001)


def read_all(path: Path, **options: object) -> tuple[list, FrameReader]:
    with FrameReader(path, **options) as reader:
        return list(reader), reader


def to_rgb(frame: object) -> np.ndarray:
    return ((frame.pixels + 1) / 2).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".mov"])
def test_every_frame_once_and_in_order_with_b_frames(tmp_path: Path, suffix: str) -> None:
    truth = pan(23)
    clip = write_clip(tmp_path / f"a{suffix}", truth, options={"bf": "3", "preset": "veryfast", "crf": "8"})
    frames, reader = read_all(clip, deinterlace="off")
    assert [f.index for f in frames] == list(range(23))
    assert not reader.warnings
    assert [f.pts_seconds for f in frames] == pytest.approx([i / 25 for i in range(23)], abs=1e-3)
    for frame, want in zip(frames, truth, strict=True):
        assert np.abs(to_rgb(frame) - want).mean() < 0.02  # the neighbours differ by more than that
    assert np.abs(to_rgb(frames[0]) - truth[1]).mean() > 0.02


def test_rational_rate_and_times_are_exact(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", pan(10), rate=NTSC)
    frames, reader = read_all(clip)
    assert reader.info.rate == NTSC
    assert reader.info.frames == 10
    assert [f.pts_seconds for f in frames] == [i / NTSC for i in range(10)]


def test_variable_time_stamps_are_exact(tmp_path: Path) -> None:
    times = [0, 17, 100, 101, 350, 900]
    clip = write_clip(tmp_path / "a.mp4", pan(6), times=times, time_base=Fraction(1, 1000), options={"bf": "0"})
    frames, _ = read_all(clip)
    assert [f.pts_seconds for f in frames] == [Fraction(t, 1000) for t in times]


def test_transport_stream_clock_starts_at_zero(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.ts", pan(5), times=[1000 + i for i in range(5)])
    assert packet_times(clip)[0] == 40  # seconds: broadcast clocks start anywhere
    frames, _ = read_all(clip)
    assert [f.pts_seconds for f in frames] == [Fraction(i, 25) for i in range(5)]


def test_start_and_stop_keep_index_and_time(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", pan(12))
    whole, _ = read_all(clip)
    part, reader = read_all(clip, start=4, stop=7)
    assert [(f.index, f.pts_seconds) for f in part] == [(f.index, f.pts_seconds) for f in whole[4:7]]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(part, whole[4:7], strict=True))
    assert not reader.warnings
    with pytest.raises(UserError, match="12 frames"):
        read_all(clip, start=12)


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ((90, False, False), lambda a: np.rot90(a, 1)),
        ((180, False, False), lambda a: np.rot90(a, 2)),
        ((270, False, False), lambda a: np.rot90(a, 3)),
        ((0, True, False), lambda a: a[:, ::-1]),
        ((0, False, True), lambda a: a[::-1]),
        ((90, True, False), lambda a: np.rot90(a, 1)[:, ::-1]),
    ],
)
def test_display_matrix_is_applied(tmp_path: Path, rotation: tuple, expected: object) -> None:
    picture = texture(64, 96)
    clip = write_clip(tmp_path / "a.mp4", [picture] * 2, rotation=rotation)
    want = expected(picture)
    frames, reader = read_all(clip)
    assert reader.info.size == want.shape[:2] == tuple(frames[0].pixels.shape[1:])
    assert np.abs(to_rgb(frames[0]) - want).mean() < 0.02
    if not any(rotation[1:]):
        with av.open(str(clip)) as container:  # FFmpeg's own word for the same turn
            assert next(container.decode(video=0)).rotation % 360 == rotation[0]


def test_pal_wide_pixels_become_square(tmp_path: Path) -> None:
    wide = texture(576, 768)  # what a square-pixel camera would see
    stored = cv2.resize(wide, (720, 576), interpolation=cv2.INTER_CUBIC)
    clip = write_clip(tmp_path / "a.mp4", [stored] * 2, aspect=Fraction(16, 15))
    frames, reader = read_all(clip)
    assert reader.info.sample_aspect_ratio == Fraction(16, 15)
    assert (reader.info.coded_height, reader.info.coded_width) == (576, 720)
    assert reader.info.size == (576, 768) == tuple(frames[0].pixels.shape[1:])
    assert np.abs(to_rgb(frames[0]) - wide).mean() < 0.01


@pytest.mark.parametrize(
    ("aspect", "width"),
    [(Fraction(4), 256), (Fraction(1, 4), 16), (Fraction(17, 4), 64), (Fraction(4, 17), 64)],
)
def test_pixels_more_than_four_times_as_wide_as_high_are_a_mistake(
    tmp_path: Path, aspect: Fraction, width: int
) -> None:
    clip = write_clip(tmp_path / "a.mkv", [texture(48, 64)] * 2, aspect=aspect)
    frames, _ = read_all(clip)
    assert probe(clip).size == (48, width) == tuple(frames[0].pixels.shape[1:])


def test_rotated_wide_pixels(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", [texture(48, 90)] * 2, aspect=Fraction(16, 15), rotation=(90, False, False))
    frames, reader = read_all(clip)
    assert reader.info.size == (96, 48) == tuple(frames[0].pixels.shape[1:])


def test_summary_names_what_matters(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", [texture(48, 90)] * 3, aspect=Fraction(16, 15), rate=NTSC)
    line = probe(clip).summary()
    for part in ("a.mp4", "96x48", "coded 90x48", "29.97", "3 frames", "h264", "bt601 limited"):
        assert part in line
    assert "\n" not in line


def test_folder_in_natural_order_with_sixteen_bits(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in (10, 9, 1):
        image = np.full((6, 8, 3), number * 1001, np.uint16)
        cv2.imwrite(str(folder / f"f{number}.png"), image)
    (folder / "notes.txt").write_text("not a frame")
    frames, reader = read_all(folder)
    assert reader.info.kind == "frames" and reader.info.frames == 3 and reader.info.rate is None
    got = [frame.pixels.mean().item() for frame in frames]
    assert got == pytest.approx([n * 1001 / 65535 * 2 - 1 for n in (1, 9, 10)], abs=1e-5)


def test_folder_with_odd_one_out_names_the_file(tmp_path: Path) -> None:
    for name, size in (("1.png", (8, 8)), ("2.png", (8, 9))):
        cv2.imwrite(str(tmp_path / name), np.zeros((*size, 3), np.uint8))
    with pytest.raises(UserError, match=r"2\.png is 9x8 but 1\.png is 8x8"):
        read_all(tmp_path)


def test_still_image_channels_and_values(tmp_path: Path) -> None:
    bgr = np.zeros((3, 5, 3), np.uint8)
    bgr[..., 2], bgr[0, 1] = 255, (10, 20, 30)
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    (frame,), reader = read_all(tmp_path / "a.png")
    assert reader.info.kind == "image" and reader.info.size == (3, 5)
    assert frame.pixels[:, 2, 2].tolist() == [1.0, -1.0, -1.0]
    assert ((frame.pixels[:, 0, 1] + 1) * 127.5).round().tolist() == [30, 20, 10]


def test_what_others_print_meanwhile_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bar is drawn by a thread of its own, on the standard error that decoders tell of damage on."""
    frames, decode = tmp_path / "frames", cv2.imdecode
    frames.mkdir()
    for name in ("0.jpg", "1.jpg"):
        cv2.imwrite(str(frames / name), (texture(48, 64) * 255).astype(np.uint8))
    whole = (frames / "1.jpg").read_bytes()
    (frames / "1.jpg").write_bytes(whole[:-200] + b"\xff\xd1" + whole[-198:])  # a marker where none belongs

    def drawing(data: np.ndarray, flags: int) -> np.ndarray | None:
        os.write(2, b"\r1 of 2 ")
        return decode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", drawing)
    with FrameReader(frames) as reader:
        assert len(list(reader)) == 2
    (warning,) = reader.warnings
    assert "1 damaged pictures are patched, first 1.jpg (Corrupt JPEG data" in warning
    assert capfd.readouterr().err == "\r1 of 2 " * 3  # probed, then read


def test_truncated_file_gives_what_there_is(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", pan(40), container_options={"movflags": "+faststart"})
    whole, _ = read_all(clip, deinterlace="off")
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 6 // 10])
    frames, reader = read_all(clip, deinterlace="off")
    assert 10 < len(frames) < 40
    assert len(reader.warnings) == 1
    assert f"decoded {len(frames)} of the 40 frames" in reader.warnings[0]
    assert torch.equal(frames[5].pixels, whole[5].pixels)


def test_truncated_matroska_says_so(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", pan(60))
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    frames, reader = read_all(clip, deinterlace="off")
    assert 10 < len(frames) < 50
    assert any(f"decoded {len(frames)} " in warning for warning in reader.warnings)


def test_trimmed_by_an_edit_list_is_not_damage(tmp_path: Path) -> None:
    """Phones trim without re-encoding: the file holds 20 frames and shows the last 14."""
    truth = pan(20)
    clip = write_clip(tmp_path / "a.mp4", truth, times=list(range(-6, 14)))
    frames, reader = read_all(clip, deinterlace="off")
    assert (len(frames), reader.info.frames) == (14, None)
    assert not reader.warnings
    assert np.abs(to_rgb(frames[0]) - truth[6]).mean() < 0.02


@pytest.mark.parametrize("seed", range(6))
def test_garbled_file_never_raises_anything_but_user_errors(tmp_path: Path, seed: int) -> None:
    clip = write_clip(tmp_path / "a.mp4", pan(12), container_options={"movflags": "+faststart"})
    data = bytearray(clip.read_bytes())
    rng = np.random.default_rng(seed)
    for position in rng.integers(0, len(data), 60):
        data[position] = rng.integers(256)
    clip.write_bytes(bytes(data))
    try:
        frames, _ = read_all(clip)
    except UserError as error:
        assert str(clip) in str(error)
    else:
        assert 1 <= len(frames) <= 60


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "does not exist"),
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"this is not a video\n" * 50, "not a video"),
        ("art.txt", b"this is text, which FFmpeg would draw\n" * 50, "not a video"),
        ("noise.mkv", bytes(range(256)) * 40, "not a video"),
        ("text.png", b"this is not an image", "cannot be read as an image"),
        ("empty.png", b"", "cannot be read as an image"),
        ("missing.png", None, "does not exist"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        FrameReader(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_video_without_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", pan(3), container_options={"movflags": "+faststart"})
    data = clip.read_bytes()
    clip.write_bytes(data[: data.index(b"mdat") + 4])  # the index survives, no picture does
    with pytest.raises(UserError, match="no frame that can be decoded"):
        FrameReader(clip)


def test_sound_without_picture(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.m4a"), "w") as output:
        stream = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(UserError, match="no video stream"):
        FrameReader(tmp_path / "a.m4a")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no frames"):
        FrameReader(tmp_path)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".mp4", ".ts"])
def test_a_clip_that_begins_late_is_not_taken_for_a_truncated_one(tmp_path: Path, suffix: str) -> None:
    codec = "libvpx" if suffix == ".webm" else "libx264"
    times = [3000 + 40 * i for i in range(50)]
    clip = write_clip(tmp_path / f"a{suffix}", pan(50, 32, 48), codec=codec, times=times, time_base=Fraction(1, 1000))
    assert probe(clip).duration == pytest.approx(2, abs=0.1)
    with FrameReader(clip) as reader:
        assert len(list(reader)) == 50
    assert reader.warnings == []
