"""Parts of an output, encoded on their own and put together: the times and frames of one encoder's file."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_video.core.errors import UserError
from ldm_video.video_io import VideoWriter, probe
from ldm_video.video_io.encoders import ENCODERS
from ldm_video.video_io.packets import Packets, read_packets, reorder_depth, write_packets
from tests.cli_support import files_below, read_pixels
from tests.video_io_support import packet_times, pan

SIZE = (96, 192)
NTSC = Fraction(30000, 1001)
CUTS = (0, 1, 11, 13, 26)
FRAMES = [torch.from_numpy(image).permute(2, 0, 1).float() * 2 - 1 for image in pan(CUTS[-1], *SIZE)]
TIMES = [(i + i // 5) / NTSC for i in range(CUTS[-1])]  # with gaps


def write_direct(path: Path, codec: str) -> Path:
    with VideoWriter(path, SIZE, None, NTSC, codec=codec, preset="veryfast") as writer:
        for pixels, time in zip(FRAMES, TIMES, strict=True):
            writer.write(pixels, time)
    return path


def write_in_parts(path: Path, codec: str) -> Path:
    writer = VideoWriter(path, SIZE, None, NTSC, codec=codec, preset="veryfast")
    parts = []
    for number, (start, stop) in enumerate(pairwise(CUTS)):
        parts.append(path.parent / f"{number}.part")
        with writer.part(parts[-1]) as part:
            for i in range(start, stop):
                part.write(FRAMES[i], TIMES[i])
    with writer:
        writer.join(parts)
    return path


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx264", ".mp4"), ("libx264", ".mkv"), ("libx264", ".ts"), ("libx265", ".mp4"), ("libx265", ".mkv"),
        ("libsvtav1", ".mp4"), ("prores_ks", ".mov"), ("ffv1", ".mkv"), ("ffv1", ""),
    ],
)  # fmt: skip
def test_parts_give_the_file_that_one_encoder_gives(tmp_path: Path, codec: str, suffix: str) -> None:
    direct, joined = write_direct(tmp_path / f"direct{suffix}", codec), write_in_parts(tmp_path / f"hd{suffix}", codec)
    a, b = read_pixels(direct), read_pixels(joined)
    assert a.shape == b.shape
    if codec in ("ffv1", "prores_ks"):  # every frame on its own
        assert np.array_equal(a, b)
    truth = np.stack([(frame.permute(1, 2, 0).numpy() + 1) * 127.5 for frame in FRAMES])
    assert np.abs(b - truth).mean() < np.abs(a - truth).mean() + 1
    if suffix:
        assert packet_times(joined) == packet_times(direct)
        assert (probe(joined).colour, probe(joined).rate) == (probe(direct).colour, probe(direct).rate)


@pytest.mark.parametrize("run", range(3))
def test_x264_gives_the_same_bytes_for_the_same_frames(tmp_path: Path, run: int) -> None:
    """At this width its AVX-512 code does not."""
    payloads = set()
    for attempt in range(4):
        garbage = [torch.rand(3, 50 + 10 * attempt, 70) for _ in range(5)]  # other memory, other leftovers in it
        writer = VideoWriter(tmp_path / "hd.mkv", SIZE, None, NTSC)
        with writer.part(tmp_path / "part") as part:
            for pixels, time in zip(FRAMES, TIMES, strict=True):
                part.write(pixels, time)
        payloads.add(b"".join(read_packets(tmp_path / "part").data))
        del garbage
    assert len(payloads) == 1


@pytest.mark.parametrize("preset", ["veryfast", "medium"])
def test_x265_gives_the_same_bytes_for_the_smallest_pictures_that_it_takes(tmp_path: Path, preset: str) -> None:
    size, payloads = ENCODERS["libx265"].smallest, set()
    writer = VideoWriter(tmp_path / "hd.mkv", size, None, NTSC, codec="libx265", preset=preset)
    for attempt in range(8):
        garbage = [torch.rand(3, 50 + 10 * attempt, 70) for _ in range(5)]
        with writer.part(tmp_path / "part") as part:
            for pixels in FRAMES[:8]:
                part.write(pixels[:, : size[0], : size[1]])
        payloads.add(b"".join(read_packets(tmp_path / "part").data))
        del garbage
    assert len(payloads) == 1


@pytest.mark.parametrize("size", [(32, 64), (30, 66), (48, 48), (128, 32), (2, 96)])
def test_smaller_ones_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    message = f"libx265 takes no picture as small as {size[1]}x{size[0]}, only 66x32 and more; .* libx264 or ffv1"
    with pytest.raises(UserError, match=message):
        VideoWriter(tmp_path / "hd.mkv", size, None, NTSC, codec="libx265")
    VideoWriter(tmp_path / "hd.mkv", size, None, NTSC)


def test_a_rehearsal_leaves_nothing_and_finds_what_is_wrong(tmp_path: Path) -> None:
    VideoWriter(tmp_path / "hd.mp4", SIZE, None, NTSC).rehearse()
    VideoWriter(tmp_path / "frames", SIZE, None, NTSC).rehearse()
    with pytest.raises(UserError, match="cannot hold libx264"):
        VideoWriter(tmp_path / "hd.webm", SIZE, None, NTSC).rehearse()
    assert files_below(tmp_path) == set()


def test_packets_come_back_as_they_were(tmp_path: Path) -> None:
    packets = Packets([b"abc", b"", b"d" * 1000], [7, 3, 5], [True, False, False])
    write_packets(tmp_path / "part", packets)
    assert read_packets(tmp_path / "part") == packets
    assert reorder_depth(tmp_path / "part") == 1
    (tmp_path / "part").write_bytes((tmp_path / "part").read_bytes()[:-1])
    for read in (read_packets, reorder_depth):
        with pytest.raises(UserError, match="is damaged"):
            read(tmp_path / "part")
