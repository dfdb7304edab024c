"""Small whole clips of many formats, ways to damage them, and a process that runs ``infer.py`` on them."""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np

from tests.cli_support import call
from tests.fork_support import forks
from tests.video_io_support import pan

SIZE = (24, 32)
FRAMES = 10
RATE = Fraction(5)
START_LIMIT, TIME_LIMIT = 240.0, 60.0  # seconds, on a machine that has other work; a case takes a seventh of one


# Whole clips.


@dataclass(frozen=True)
class Format:
    """``beside``: the codec of the sound or of the subtitles."""

    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    beside: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


GROUPS = {"g": "4"}
MPEG = GROUPS | {"b": "400k"}
FORMATS = {
    "h264.mp4": Format(beside="aac", options=GROUPS),
    "h264.mkv": Format(beside="subrip", options=GROUPS),
    "h264.ts": Format(beside="aac", options=GROUPS),
    "h264.flv": Format(options=GROUPS),
    "h264.h264": Format(options=GROUPS),
    "h265.mp4": Format("libx265", options={"x265-params": "log-level=none:keyint=4"}),
    "mpeg2.mpg": Format("mpeg2video", beside="mp2", options=MPEG),
    "mpeg2.ts": Format("mpeg2video", options=MPEG),
    "mpeg4.avi": Format("mpeg4", beside="mp3", options=MPEG),
    "mjpeg.avi": Format("mjpeg", "yuvj420p", beside="pcm_s16le"),
    "huffyuv.avi": Format("huffyuv", "yuv422p"),
    "wmv2.wmv": Format("wmv2", options=MPEG),
    "ffv1.mkv": Format("ffv1", beside="flac", options=GROUPS),
    "vp9.webm": Format("libvpx-vp9", beside="libopus", options=GROUPS | {"deadline": "realtime", "cpu-used": "8"}),
    "prores.mov": Format("prores_ks", "yuv422p10le", beside="pcm_s16le"),
    "picture.gif": Format("gif", "rgb8"),
}


@cache
def picture(index: int, size: tuple[int, int], pixel_format: str) -> av.VideoFrame:
    """Frame ``index`` of the clip that all formats hold."""
    rgb = (_pictures(size)[index % FRAMES] * 255).astype(np.uint8)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24").reformat(format=pixel_format)


@cache
def _pictures(size: tuple[int, int]) -> list[np.ndarray]:
    return pan(FRAMES, *size, step=1)


def encode(
    path: Path,
    made_as: Format = Format(options=GROUPS),
    *,
    sizes: Sequence[tuple[int, int]] = (SIZE,) * FRAMES,
    times: Sequence[int] | None = None,
    time_base: Fraction = 1 / RATE,
    rate: Fraction = RATE,
    rotation: float | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A whole clip; ``sizes``: (height, width) of each frame, all alike except for codecs that can change theirs."""
    with av.open(str(path), "w", container_options=container_options or {}) as output:
        stream = output.add_stream(made_as.codec, rate=rate, options={"preset": "ultrafast"} | dict(made_as.options))
        stream.height, stream.width, stream.pix_fmt = *sizes[0], made_as.pixel_format
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        other = add_beside(output, made_as.beside) if made_as.beside else []
        for index, size in enumerate(sizes):
            frame = picture(index, size, made_as.pixel_format)
            frame.pts, frame.time_base = (index if times is None else times[index]), time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        output.mux(other)
    return path


def add_beside(output: av.container.OutputContainer, codec: str) -> list[av.Packet]:
    """A stream of sound (a tone) or of subtitles; returns its packets."""
    if codec == "subrip":
        packet = av.Packet(b"a line")
        packet.stream, packet.time_base = output.add_mux_stream(codec), Fraction(1, 1000)
        packet.pts = packet.dts = 40
        packet.duration = 200
        return [packet]
    stream = output.add_stream(codec, rate=48000)
    stream.layout = "stereo"
    context = stream.codec_context
    context.open()
    block, resampler = context.frame_size or 1024, av.AudioResampler(context.format, "stereo", 48000)
    packets = []
    for start in range(0, int(48000 * FRAMES / RATE), block):
        tone = np.sin(np.arange(start, start + block) * 0.05).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = 48000, start, Fraction(1, 48000)
        for part in resampler.resample(sound):
            part.pts = start
            packets += stream.encode(part)
    return packets + stream.encode(None)


@cache
def whole(name: str) -> bytes:
    """The file ``name`` of :data:`FORMATS`; made once."""
    with TemporaryDirectory() as folder:
        return encode(Path(folder) / name, FORMATS[name]).read_bytes()


def decodable(path: Path) -> int:
    """How many frames FFmpeg gets out of a file in one thread, whatever it complains of on the way."""
    frames = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for packet in container.demux(stream):
                try:
                    frames += len(packet.decode())
                except av.FFmpegError:
                    continue
    except (av.FFmpegError, IndexError):
        return frames
    return frames


# Damage: bytes in, bytes out.

Harm = Callable[[bytes, random.Random], bytes]


def flip_bits(count: int) -> Harm:
    def harm(data: bytes, rng: random.Random) -> bytes:
        changed = bytearray(data)
        for _ in range(count):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    return harm


def flip_share(share: float) -> Harm:
    """About ``share`` of all bytes get a wrong bit."""
    return lambda data, rng: flip_bits(max(1, round(share * len(data))))(data, rng)


def truncate(share: float) -> Harm:
    return lambda data, rng: data[: round(share * len(data))]


def overwrite(share: float, noise: bool) -> Harm:
    """A block of ``share`` of the file, somewhere, becomes noise or zeros."""

    def harm(data: bytes, rng: random.Random) -> bytes:
        size = max(1, round(share * len(data)))
        start = rng.randrange(len(data) - size + 1)
        return data[:start] + (rng.randbytes(size) if noise else bytes(size)) + data[start + size :]

    return harm


def cut_out(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 1 + len(data) // 4) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 1 + len(data) // 4)] + data[start:]


def prepend_noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(300) + data


def append_noise(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(300)


# The process that does the work.


class Crashed(Exception):
    """The process died or hung."""


@dataclass(frozen=True)
class Ended:
    """How a run of ``infer.py`` ended: exit code, standard output, standard error."""

    code: int
    printed: str
    complaints: str


class Runner:
    """``infer.py`` in a process of its own, one run after the other: a crash or a hang is that run's alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: BaseProcess | None = None

    def run(self, *arguments: object) -> Ended:
        """Raises ``Crashed`` when the process dies or takes too long; the next run gets a new one."""
        if self._process is None:
            self._begin()
        self._connection.send([*map(str, arguments)])
        return Ended(*self._answer(TIME_LIMIT))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def _begin(self) -> None:
        self._connection, theirs = forks.Pipe()
        self._process = forks.Process(target=serve, args=(theirs, self._folder))
        self._process.start()
        theirs.close()
        self._answer(START_LIMIT)

    def _answer(self, limit: float) -> tuple[int, str, str]:
        try:
            if self._connection.poll(limit):
                return self._connection.recv()
            reason = f"no end after {limit} s"
        except (EOFError, OSError):
            reason = "the process died"
        self.close()
        raise Crashed(f"{reason}; its last words: {(self._folder / 'channel2').read_text(errors='replace')}")


def serve(connection: Connection, folder: Path) -> None:
    """What the process does: runs for as long as arguments come."""
    import torch

    import infer

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    cv2.setNumThreads(1)
    channels = [folder / f"channel{channel}" for channel in (1, 2)]
    for channel, path in enumerate(channels, start=1):  # beneath Python: the C libraries' complaints count too
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), channel)
    connection.send((0, "", ""))
    while True:
        arguments = connection.recv()
        for path in channels:
            os.truncate(path, 0)
        try:
            code = call(infer, *arguments)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send((code, *(path.read_text(errors="replace") for path in channels)))
