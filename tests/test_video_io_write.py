"""Writing: whole or absent, exact times, sound and subtitles untouched."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from ldm_video.core.errors import UserError
from ldm_video.video_io import FrameReader, VideoInfo, VideoWriter, probe
from ldm_video.video_io.sinks import write_image
from tests.video_io_support import packet_bytes, packet_times, pan, texture, write_clip, yuv_frame

SIZE = (64, 96)
NTSC = Fraction(30000, 1001)
FAST = {"preset": "ultrafast"}
SUBTITLE = b"Hello, world"


def picture(value: float = 0.0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.full((3, *size), value)


def write_pictures(path: Path, codec: str, frames: int) -> None:
    with VideoWriter(path, SIZE, None, NTSC, codec=codec, preset="veryfast") as writer:
        for _ in range(frames):
            writer.write(picture())


def copy_times(clip: Path, output: Path, **options: object) -> VideoInfo:
    """Read and write as the pipeline does."""
    with FrameReader(clip, deinterlace="off") as reader:
        info = reader.info
        with VideoWriter(output, info.size, info, info.rate, **FAST, **options) as writer:
            for frame in reader:
                writer.write(frame.pixels, frame.pts_seconds)
    copy_times.warnings = writer.warnings  # type: ignore[attr-defined]
    return probe(output)


def clip_with_everything(path: Path, subtitles: str = "mov_text", start: Fraction = Fraction(0)) -> Path:
    """Two seconds of picture, a tone in AAC and one subtitle."""
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height = 96, 64
        audio = output.add_stream("aac", rate=48000)
        streams = [output.add_mux_stream(subtitles)] if subtitles else []
        for i, image in enumerate(pan(50, 64, 96)):
            frame = yuv_frame(image)
            frame.pts, frame.time_base = i + int(start * 25), Fraction(1, 25)
            output.mux(video.encode(frame))
        for i in range(94):
            tone = 0.2 * np.sin(np.arange(1024 * i, 1024 * (i + 1)) * 0.05).astype(np.float32)
            block = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
            block.sample_rate, block.time_base = 48000, Fraction(1, 48000)
            block.pts = 1024 * i + int(start * 48000)
            output.mux(audio.encode(block))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))
        for stream in streams:
            payload = len(SUBTITLE).to_bytes(2, "big") + SUBTITLE if subtitles == "mov_text" else SUBTITLE
            packet = av.Packet(payload)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = 500 + int(start * 1000)
            packet.duration = 800
            output.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".webp", ".jpg"])
def test_a_picture_too_large_for_its_format(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match=rf"70000x1 does not fit into \{suffix}"):
        write_image(tmp_path / f"a{suffix}", picture(size=(1, 70000)))
    assert not list(tmp_path.iterdir())


def test_rate_and_count(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, SIZE, None, NTSC) as writer:  # medium: with B-frames
        for i in range(40):
            writer.write(picture(i / 40 - 0.5))
    info = probe(path)
    assert (info.rate, info.frames, info.size, info.sample_aspect_ratio) == (NTSC, 40, SIZE, 1)
    assert packet_times(path) == [i / NTSC for i in range(40)]
    assert info.duration == 40 / NTSC


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("source", [".mp4", ".mkv"])
def test_variable_time_stamps_are_kept_exactly(tmp_path: Path, source: str, suffix: str) -> None:
    times = [0, 17, 100, 101, 350, 900, 933, 2000, 2001, 2100]
    clip = write_clip(tmp_path / f"in{source}", pan(10, *SIZE), times=times, time_base=Fraction(1, 1000))
    copy_times(clip, tmp_path / f"out{suffix}")
    assert packet_times(tmp_path / f"out{suffix}") == [Fraction(t, 1000) for t in times]


def test_variable_time_stamps_in_matroska_to_the_millisecond(tmp_path: Path) -> None:
    times = [0, 1501, 3003, 9000, 9999]
    clip = write_clip(tmp_path / "in.mp4", pan(5, *SIZE), times=times, time_base=Fraction(1, 90000))
    copy_times(clip, tmp_path / "out.mkv")
    assert packet_times(tmp_path / "out.mkv") == [Fraction(round(t / 90), 1000) for t in times]


def test_avi_has_a_slot_for_each_frame(tmp_path: Path) -> None:
    """Of a finer clock it would hold 600 a second, most of them empty."""
    times = [0, 1000, 2001, 3001, 10010, 11010]  # as Matroska rounds 30000/1001 a second, with a gap
    clip = write_clip(tmp_path / "in.mkv", pan(6, *SIZE), times=times, time_base=Fraction(1, 30000), rate=NTSC)
    info = copy_times(clip, tmp_path / "out.avi")
    with av.open(str(tmp_path / "out.avi")) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.frames) == (NTSC, 12)
    with FrameReader(tmp_path / "out.avi") as reader:
        assert [frame.pts_seconds * NTSC for frame in reader] == [0, 1, 2, 3, 10, 11]
    assert info.rate == NTSC and not reader.warnings


@pytest.mark.parametrize(("source", "subtitles"), [(".mp4", "mov_text"), (".mkv", "subrip"), (".mkv", "webvtt")])
def test_sound_and_subtitles_are_copied_bit_for_bit(tmp_path: Path, source: str, subtitles: str) -> None:
    clip = clip_with_everything(tmp_path / f"in{source}", subtitles)
    output = tmp_path / f"out{source}"
    info = copy_times(clip, output)
    assert not copy_times.warnings
    assert (info.audio_streams, info.subtitle_streams) == (1, 1)
    for kind in ("audio", "subtitle"):
        want, got = packet_bytes(clip, kind), packet_bytes(output, kind)
        assert len(want) >= (90 if kind == "audio" else 1)
        assert [payload for _, payload in got] == [payload for _, payload in want]
        assert [t for t, _ in got] == pytest.approx([t for t, _ in want], abs=1e-3)
    assert packet_times(output) == packet_times(clip)


def test_subtitles_that_do_not_fit_are_named_and_left_out(tmp_path: Path) -> None:
    clip = clip_with_everything(tmp_path / "in.mkv", "subrip")
    info = copy_times(clip, tmp_path / "out.mp4")
    (warning,) = copy_times.warnings
    for part in ("subtitle stream 2", "subrip", ".mp4", ".mkv"):
        assert part in warning
    assert (info.audio_streams, info.subtitle_streams, info.frames) == (1, 0, 50)


def test_transport_stream_stays_in_sync(tmp_path: Path) -> None:
    """A clock that starts at 40 s: picture and sound lose the same amount."""
    clip = clip_with_everything(tmp_path / "in.ts", "", start=Fraction(40))
    copy_times(clip, tmp_path / "out.mkv")
    (audio_in, _), (audio_out, _) = packet_bytes(clip, "audio")[0], packet_bytes(tmp_path / "out.mkv", "audio")[0]
    video_in, video_out = packet_times(clip)[0], packet_times(tmp_path / "out.mkv")[0]
    assert float(audio_out - video_out) == pytest.approx(float(audio_in - video_in), abs=2e-3)
    assert 0 <= min(audio_out, video_out) < 0.1


def test_sound_is_interleaved_with_the_picture(tmp_path: Path) -> None:
    clip = clip_with_everything(tmp_path / "in.mkv", "")
    copy_times(clip, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        order = [(p.stream.type, float(p.dts * p.time_base)) for p in container.demux() if p.size]
    last = {"audio": 0.0, "video": 0.0}
    for kind, seconds in order:
        last[kind] = seconds
        if max(last.values()) < 1.8:  # the sound ends a little before the picture
            assert abs(last["audio"] - last["video"]) < 0.5


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("a.mp4", "frames", "a.png"):
        with (
            pytest.raises(RuntimeError, match="halfway"),
            VideoWriter(folder / name, SIZE, None, NTSC, **FAST) as writer,
        ):
            writer.write(picture())
            raise RuntimeError("halfway")
    assert list(folder.iterdir()) == []


def test_an_exception_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), VideoWriter(path, SIZE, None, NTSC, overwrite=True, **FAST) as writer:
        writer.write(picture())
        raise RuntimeError
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_no_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no frame"), VideoWriter(tmp_path / "a.mp4", SIZE, None, NTSC):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folder_of_frames(tmp_path: Path) -> None:
    odd = (33, 47)
    truth = [torch.from_numpy(texture(*odd, seed)).permute(2, 0, 1).float() * 2 - 1 for seed in range(3)]
    with VideoWriter(tmp_path / "frames", odd, None, NTSC) as writer:
        for pixels in truth:
            writer.write(pixels)
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == ["000000.png", "000001.png", "000002.png"]
    with FrameReader(tmp_path / "frames") as reader:
        for frame, want in zip(reader, truth, strict=True):
            assert (frame.pixels - want).abs().max() <= 1 / 255 + 1e-6


def test_existing_empty_folder_takes_frames_and_full_one_is_protected(tmp_path: Path) -> None:
    folder = tmp_path / "frames.d"
    folder.mkdir()
    with VideoWriter(folder, SIZE, None, NTSC) as writer:
        writer.write(picture())
    with pytest.raises(UserError, match="not empty"):
        VideoWriter(folder, SIZE, None, NTSC)
    (folder / "thesis.doc").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.doc"):
        VideoWriter(folder, SIZE, None, NTSC, overwrite=True)
    assert (folder / "thesis.doc").read_text() == "precious"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_still_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 33, 47)
    with VideoWriter(path, (33, 47), None, NTSC) as writer:
        writer.write(red)
        with pytest.raises(UserError, match="holds one frame"):
            writer.write(red)
    assert np.abs(cv2.imread(str(path)).astype(int) - (0, 0, 255)).max() <= 2


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_odd_size_is_refused_with_the_nearest_even_one(tmp_path: Path, codec: str) -> None:
    with pytest.raises(UserError, match="choose 48x34"):
        VideoWriter(tmp_path / "a.mp4", (33, 47), None, NTSC, codec=codec)


def test_lossless_holds_odd_sizes(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mkv", (33, 47), None, NTSC, codec="ffv1") as writer:
        writer.write(picture(0.25, (33, 47)))
    assert probe(tmp_path / "a.mkv").size == (33, 47)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_very_short_clips_without_chatter(
    tmp_path: Path, codec: str, frames: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own: SVT-AV1 asks once in a process whether it may speak."""
    path = tmp_path / "a.mp4"
    process = multiprocessing.get_context("spawn").Process(target=write_pictures, args=(path, codec, frames))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert packet_times(path) == [i / NTSC for i in range(frames)]
    assert capfd.readouterr() == ("", "")


def test_refusals(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", pan(2, *SIZE))
    with pytest.raises(UserError, match="exists already"):
        VideoWriter(clip, SIZE, None, NTSC)
    with pytest.raises(UserError, match="is the input"):
        VideoWriter(clip, SIZE, probe(clip), NTSC, overwrite=True)
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match="taken is a file, and frames need a folder"):
        VideoWriter(tmp_path / "taken", SIZE, probe(clip), NTSC, overwrite=True)
    (tmp_path / "taken").unlink()
    with pytest.raises(UserError, match="unknown codec"):
        VideoWriter(tmp_path / "a.mp4", SIZE, None, NTSC, codec="realvideo")
    for name, codec, message in (("a.xyz", "libx264", "unknown output format"), ("a.webm", "libx264", "webm")):
        with pytest.raises(UserError, match=message), VideoWriter(tmp_path / name, SIZE, None, NTSC, codec=codec):
            pass
    with pytest.raises(UserError, match="--crf 52 is outside 0 to 51"):
        VideoWriter(tmp_path / "a.mp4", SIZE, None, NTSC, codec="libx265", crf=52)
    with pytest.raises(UserError, match="unknown preset"):
        VideoWriter(tmp_path / "a.mp4", SIZE, None, NTSC, preset="?")
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("name", ["a.m3u8", "a.mpd"])
def test_playlists_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Their segments are files under names that nobody chose, which no rename reaches."""
    clip = clip_with_everything(tmp_path / "in.mp4", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name[1:]} of .* is not a single file"):
        VideoWriter(tmp_path / name, SIZE, probe(clip), NTSC).rehearse()
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("name", ["a.yuv", "a.rgb"])
def test_bare_pixels_are_refused(tmp_path: Path, name: str) -> None:
    """FFmpeg would write a coded stream under that name."""
    with pytest.raises(UserError, match=f"{name[1:]} of .* is for bare pixels"):
        VideoWriter(tmp_path / name, SIZE, None, NTSC).rehearse()
    assert list(tmp_path.iterdir()) == []


def test_bad_frames(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", SIZE, None, NTSC, **FAST) as writer:
        writer.write(picture(), Fraction(1))
        with pytest.raises(ValueError, match="must increase"):
            writer.write(picture(), Fraction(1))
        with pytest.raises(ValueError, match="shape"):
            writer.write(picture(size=(64, 64)))
        with pytest.raises(UserError, match="not numbers"):
            writer.write(picture(float("nan")), Fraction(2))


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "frames"])
def test_unwritable_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")  # root may write anywhere, but not below a file
    with pytest.raises(UserError, match="cannot write"), VideoWriter(tmp_path / "file" / name, SIZE, None, NTSC):
        pass
    with pytest.raises(UserError, match=r"cannot write|no space"), VideoWriter(f"/proc/{name}", SIZE, None, NTSC):
        pass


LIMITED = """
import resource, sys, torch
from fractions import Fraction
from ldm_video.core.errors import run_cli
from ldm_video.video_io import VideoWriter

def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    generator = torch.Generator().manual_seed(0)
    with VideoWriter(sys.argv[1], (128, 128), None, Fraction(25), crf=0, preset="ultrafast") as writer:
        for _ in range(30):
            writer.write(torch.rand(3, 128, 128, generator=generator) * 2 - 1)

run_cli(main)
"""


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "frames"])
def test_no_space_left(tmp_path: Path, name: str) -> None:
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "out" / name)],
        cwd=root, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert "no space left" in run.stderr and run.stderr.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []
