"""What ``test_fuzz.py`` does to clips: bytes, headers, clocks, packets, sizes; and how each has to end."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np

from tests.fuzz_support import (
    FORMATS,
    FRAMES,
    GROUPS,
    MPEG,
    SIZE,
    Format,
    Harm,
    append_noise,
    cut_out,
    encode,
    flip_bits,
    flip_share,
    overwrite,
    prepend_noise,
    repeat,
    truncate,
    whole,
)

Make = Callable[[Path], Sequence[object]]
"""Writes into a folder and returns ``infer.py``'s arguments after ``--input``: the source, then options."""


@dataclass(frozen=True)
class Case:
    """``frames``: in the output; None: as many as FFmpeg gets out of the source; 0: it is refused; -1: either will do.

    ``says``: is in what is printed on standard error. ``output``: a name, where it matters.
    """

    kind: str
    name: str
    make: Make
    frames: int | None = None
    says: str = ""
    output: str = ""


def clip_cases() -> Iterator[Case]:
    """In an order that never changes."""
    yield from bytes_cases()
    yield from header_cases()
    yield from clock_cases()
    yield from packet_cases()
    yield from change_cases()
    yield from size_cases()
    yield from huge_cases()


# Bytes, whatever they mean.

HARMS: dict[str, Harm] = {
    "one bit": flip_bits(1),
    "five bits": flip_bits(5),
    "bits, 1 in 100 bytes": flip_share(0.01),
    "bits, 1 in 10 bytes": flip_share(0.1),
    "truncated to 2 %": truncate(0.02),
    "truncated to 50 %": truncate(0.5),
    "truncated to 95 %": truncate(0.95),
    "10 % noise": overwrite(0.1, noise=True),
    "30 % zeros": overwrite(0.3, noise=False),
    "a piece cut out": cut_out,
    "a piece twice": repeat,
    "noise before": prepend_noise,
    "noise after": append_noise,
}


def bytes_cases() -> Iterator[Case]:
    for number, name in enumerate(FORMATS):
        for what in ("untouched", *islice(HARMS, number % 3, None, 3)):
            harm = HARMS.get(what, lambda data, rng: data)

            def make(folder: Path, name: str = name, what: str = what, harm: Harm = harm) -> Sequence[object]:
                source = folder / name
                source.write_bytes(harm(whole(name), random.Random(f"{name} {what}")))
                return [source]

            kind = what if what == "untouched" else "truncated" if "truncated" in what else "bits and bytes"
            yield Case(kind, f"{name}, {what}", make)


# Fields of headers.

BOXES = ("stts", "mdhd", "elst", "stsz", "stco", "stsc", "avcC", "stsd", "tkhd", "hdlr", "stss")


def patched(name: str, after: bytes, offset: int, fill: bytes) -> Make:
    """The file ``name`` with ``fill`` at ``offset`` from the first ``after``."""

    def make(folder: Path) -> Sequence[object]:
        data = bytearray(whole(name))
        start = data.index(after) + offset
        data[start : start + len(fill)] = fill
        source = folder / name
        source.write_bytes(data)
        return [source]

    return make


def header_cases() -> Iterator[Case]:
    for box in BOXES:
        for name, byte in (("ones", b"\xff"), ("zeros", b"\0")):
            yield Case("header", f"mp4 {box} of {name}", patched("h264.mp4", box.encode(), 12, byte * 8))
    for name, byte in (("ones", b"\xff"), ("zeros", b"\0")):
        yield Case("header", f"avi rate of {name}", patched("mjpeg.avi", b"strh", 28, byte * 8))
        yield Case("header", f"avi frame time of {name}", patched("mpeg4.avi", b"avih", 8, byte * 4))
        yield Case("header", f"mkv time scale of {name}", patched("ffv1.mkv", b"\x2a\xd7\xb1", 4, byte * 3))
        yield Case("header", f"gif delay of {name}", patched("picture.gif", b"\x21\xf9\x04", 4, byte * 2))
    below = patched("ffv1.mkv", b"\x81\0\0\x80", 1, b"\xfe\0")  # the first block's time, of 16 bits with a sign
    yield Case("clock", "mkv, first frame half a second before zero", below)
    yield Case("header", "mp4 matrix of noise", patched("h264.mp4", b"tkhd", 44, bytes(range(1, 37))))


# Clocks.


def clip(name: str, made_as: Format = Format(options=GROUPS), **options: object) -> Make:  # noqa: B008
    return lambda folder: [encode(folder / name, made_as, **options)]  # type: ignore[arg-type]


def clock_cases() -> Iterator[Case]:
    ten, ms = list(range(FRAMES)), Fraction(1, 1000)
    times = {
        "begins below zero": [200 * i - 900 for i in ten],
        "begins after a week": [200 * i + 604_800_000 for i in ten],
        "an hour's gap": [200 * i + 3_600_000 * (i > 4) for i in ten],
        "ninety days' gap": [200 * i + 7_776_000_000 * (i > 4) for i in ten],
        "a frame each millisecond": ten,
        "a frame each hour": [3_600_000 * i for i in ten],
        "uneven": [i * i * 37 for i in ten],
    }
    for what, stamps in times.items():
        for name in ("c.mkv", "c.mp4", "c.ts"):
            yield Case("clock", f"{name}, {what}", clip(name, times=stamps, time_base=ms))
    for base in ((1, 1), (7, 3), (1, 1_000_003), (1001, 24000), (1, 10_000_000)):
        fraction = Fraction(*base)
        yield Case("clock", f"time base {fraction}", clip("c.mp4", time_base=fraction, rate=1 / fraction), FRAMES)
    for name, codec in (("c.m2v", "mpeg2video"), ("c.mjpeg", "mjpeg"), ("c.hevc", "libx265"), ("c.m4v", "mpeg4")):
        made_as = Format(codec, "yuvj420p" if codec == "mjpeg" else "yuv420p", options=FORMATS["h265.mp4"].options)
        yield Case("clock", f"{name}, no clock at all", clip(name, made_as, rate=Fraction(25)), FRAMES)


# Packets missing, twice, out of order, with wrong times.


@dataclass(frozen=True)
class Unit:
    """A packet: what it holds and when."""

    data: bytes
    pts: int
    dts: int
    key: bool


Change = Callable[[list[Unit], random.Random], list[Unit]]


def again(units: Sequence[Unit], times: Sequence[Unit]) -> list[Unit]:
    """The data of ``units`` at the times of ``times``."""
    return [Unit(unit.data, time.pts, time.dts, unit.key) for unit, time in zip(units, times, strict=False)]


def restamped(units: list[Unit], stamp: Callable[[int, int], int]) -> list[Unit]:
    """``stamp(number, dts)`` as presentation times; no muxer takes one before its decoding time."""
    return [Unit(u.data, max(u.dts, stamp(i, u.dts)), u.dts, u.key) for i, u in enumerate(units)]


CHANGES: dict[str, Change] = {
    "first key frame missing": lambda units, rng: units[1:],
    "all key frames missing": lambda units, rng: [unit for unit in units if not unit.key],
    "every second missing": lambda units, rng: units[::2],
    "each twice": lambda units, rng: again([u for u in units for _ in (0, 1)][: len(units)], units),
    "backwards": lambda units, rng: again(units[::-1], units),
    "shuffled": lambda units, rng: again(rng.sample(units, len(units)), units),
    "cut short": lambda units, rng: again([Unit(u.data[:9], 0, 0, u.key) for u in units[:5]] + units[5:], units),
    "noise": lambda units, rng: again([Unit(rng.randbytes(50), 0, 0, u.key) for u in units], units),
    "equal times": lambda units, rng: restamped(units, lambda i, dts: units[-1].dts),
    "a time far ahead": lambda units, rng: restamped(units, lambda i, dts: dts + (i == 4) * 10**9),
    "random times": lambda units, rng: restamped(units, lambda i, dts: dts + rng.randrange(5000)),
}


def repacked(name: str, target: str, change: Change) -> Make:
    def make(folder: Path) -> Sequence[object]:
        with av.open(io.BytesIO(whole(name))) as source, av.open(str(folder / target), "w") as output:
            template = source.streams.video[0]
            units = [Unit(bytes(p), p.pts, p.dts, p.is_keyframe) for p in source.demux(template) if p.size]
            stream = output.add_stream_from_template(template, opaque=True)
            for unit in change(units, random.Random(name)):
                packet = av.Packet(unit.data)
                packet.stream, packet.time_base = stream, template.time_base
                packet.pts, packet.dts, packet.is_keyframe = unit.pts, unit.dts, unit.key
                output.mux(packet)
        return [folder / target]

    return make


def packet_cases() -> Iterator[Case]:
    for name, target in (("h264.mp4", "p.mp4"), ("mpeg2.ts", "p.ts"), ("vp9.webm", "p.mkv"), ("mjpeg.avi", "p.avi")):
        for what, change in CHANGES.items():
            if target == "p.avi" and "time" in what:  # AVI holds none
                continue
            yield Case("packets", f"{name}, {what}", repacked(name, target, change))


# Pictures that change size or format midway.


def joined(folder: Path, name: str, clips: Sequence[tuple[tuple[int, int], str]], codec: str) -> Sequence[object]:
    """Streams that can be put behind one another, byte for byte."""
    parts = []
    for number, (size, pixel_format) in enumerate(clips):
        part = folder / f"{number}{Path(name).suffix}"
        encode(part, Format(codec, pixel_format, options=MPEG), sizes=[size] * FRAMES, rate=Fraction(25))
        parts.append(part.read_bytes())
        part.unlink()
    (folder / name).write_bytes(b"".join(parts))
    return [folder / name]


def change_cases() -> Iterator[Case]:
    small, large, tall = (SIZE, "yuv420p"), ((48, 64), "yuv420p"), ((64, 32), "yuv420p")
    streams = (("j.ts", "mpeg2video"), ("j.mpg", "mpeg2video"), ("j.h264", "libx264"), ("j.ts", "libx264"))
    orders = {"larger": [small, large], "smaller": [large, small], "taller": [small, tall], "often": [small, large] * 3}
    for what, clips in orders.items():
        for name, codec in streams:
            yield Case(
                "size change",
                f"{name} of {codec} becomes {what}",
                lambda folder, name=name, clips=clips, codec=codec: joined(folder, name, clips, codec),
                says="the picture format changes midway",
            )
    for formats in (("yuv420p", "yuv444p"), ("yuv444p", "yuv420p"), ("yuv420p", "yuv420p10le"), ("gray", "yuv422p")):
        clips = [(SIZE, pixel_format) for pixel_format in formats]
        yield Case(
            "size change",
            f"{formats[0]} becomes {formats[1]}",
            lambda folder, clips=clips: joined(folder, "j.h264", clips, "libx264"),
            says="the picture format changes midway",
        )


# Small, turned and huge pictures.


def size_cases() -> Iterator[Case]:
    lossless = Format("rawvideo", "bgr24")
    for size in ((1, 1), (1, 40), (40, 1), (2, 2), (3, 3), (5, 7), (13, 17), (16, 2)):
        yield Case("small", f"{size[1]}x{size[0]}", clip("s.nut", lossless, sizes=[size] * 4), 4)
        picture = np.full((*size, 3), 90, np.uint8)
        yield Case("small", f"{size[1]}x{size[0]}, a picture", image("s.png", picture, scale=4), 1)
    for angle in (0, 90, 180, 270, 45, 30, -720):
        yield Case("turned", f"by {angle} degrees", clip("r.mp4", rotation=float(angle)), FRAMES)


def image(name: str, picture: np.ndarray, scale: int) -> Make:
    def make(folder: Path) -> Sequence[object]:
        cv2.imwrite(str(folder / name), picture)
        return [folder / name, "--scale", scale]

    return make


def png_of(width: int, height: int) -> bytes:
    """A header that claims a size, and a few rows at most."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(9000))), (b"IEND", b""))
    coded = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def of_bytes(name: str, data: bytes | Callable[[], bytes]) -> Make:
    def make(folder: Path) -> Sequence[object]:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data())
        return [folder / name]

    return make


def huge_cases() -> Iterator[Case]:
    for side in (8000, 60_000, 2**31 - 1):
        yield Case("huge", f"png of {side}", of_bytes("h.png", png_of(side, side)), 0)
    claims = {
        "mjpeg of 65500": ("mjpeg.avi", b"\xff\xc0", 5, b"\xff\xdc\xff\xdc"),
        "mjpeg of 8192": ("mjpeg.avi", b"\xff\xc0", 5, b"\x20\x00\x20\x00"),
        "avi header of 65535": ("huffyuv.avi", b"strf", 12, struct.pack("<ii", 65535, 65535)),
        "avi header of 16384": ("huffyuv.avi", b"strf", 12, struct.pack("<ii", 16384, 16384)),
        "gif of 65535": ("picture.gif", b"GIF89a", 6, b"\xff\xff\xff\xff"),
        "gif of 5000": ("picture.gif", b"GIF89a", 6, struct.pack("<HH", 5000, 5000)),
        "mpeg2 of 4095": ("mpeg2.ts", b"\x00\x00\x01\xb3", 4, b"\xff\xff\xff"),
        "mkv of 16383": ("ffv1.mkv", b"\xb0\x81", 1, b"\x82\x3f\xff"),
        "mp4 sample entry of 65535": ("h264.mp4", b"avc1", 28, b"\xff\xff\xff\xff"),
        "mp4 sample size of 2 GB": ("h264.mp4", b"stsz", 8, b"\x7f\xff\xff\xff"),
        "mp4 with 4 billion samples": ("h264.mp4", b"stsz", 12, b"\xff\xff\xff\xff"),
    }
    for what, (name, after, offset, fill) in claims.items():
        yield Case("huge", what, enlarged(patched(name, after, offset, fill), 4), -1, output="hd.mp4")
    truly = enlarged(lambda folder: [black(folder / "8k.avi", (4320, 8190))], 4)
    yield Case("huge", "8K, in truth", truly, 0, "the output would be 32760x17280", "hd.mp4")


def enlarged(make: Make, scale: int) -> Make:
    return lambda folder: [*make(folder), "--scale", scale]


def black(path: Path, size: tuple[int, int]) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        frame = av.VideoFrame(size[1], size[0], "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
