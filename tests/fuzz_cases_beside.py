"""What ``test_fuzz.py`` gives beside damaged clips: sound, pixel formats, masks, folders, files that are no videos."""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np

from tests.fuzz_cases import Case, Make, Unit, clip, of_bytes, png_of
from tests.fuzz_support import (
    FRAMES,
    GROUPS,
    RATE,
    SIZE,
    Format,
    Harm,
    add_beside,
    encode,
    flip_share,
    overwrite,
    picture,
    truncate,
    whole,
)
from tests.video_io_support import pan

PICTURES = [(255 * p).astype(np.uint8) for p in pan(FRAMES, *SIZE, step=1)]


def beside_cases() -> Iterator[Case]:
    """In an order that never changes."""
    yield from sound_cases()
    yield from pixel_cases()
    yield from mask_cases()
    yield from folder_cases()
    yield from stranger_cases()


# Sound, subtitles, data.

Bend = Callable[[Unit, random.Random], Unit]

BENDS: dict[str, Bend] = {
    "noise": lambda unit, rng: replace(unit, data=rng.randbytes(len(unit.data))),
    "bits": lambda unit, rng: replace(unit, data=flip_share(0.02)(unit.data, rng)),
    "times that jump": lambda unit, rng: replace(unit, pts=unit.pts + 96_000 * rng.randrange(3)),
    "far in the future": lambda unit, rng: replace(unit, pts=unit.pts + 10**9),
    "below zero": lambda unit, rng: replace(unit, pts=unit.pts - 48_000),
    "one time": lambda unit, rng: replace(unit, pts=4096),
    "short": lambda unit, rng: replace(unit, data=unit.data[:1]),
}


def with_sound(name: str, codec: str, bend: Bend | None) -> Make:
    """A whole picture beside sound whose packets are bent; none at all for ``bend=None``."""

    def make(folder: Path) -> Sequence[object]:
        made = random.Random(name)
        # What FFmpeg itself refuses to write is not in the file.
        with suppress(av.FFmpegError), av.open(str(folder / name), "w") as output:
            video = output.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
            video.height, video.width, video.pix_fmt = *SIZE, "yuv420p"
            sound = add_beside(output, codec)
            for index in range(FRAMES):
                frame = picture(index, SIZE, "yuv420p")
                frame.pts, frame.time_base = index, 1 / RATE
                output.mux(video.encode(frame))
            output.mux(video.encode(None))
            for packet in sound if bend is not None else []:
                bent = bend(Unit(bytes(packet), packet.pts, packet.pts, True), made)
                muxed = av.Packet(bent.data)
                muxed.stream, muxed.time_base = packet.stream, Fraction(1, 48000)
                muxed.pts = muxed.dts = bent.pts
                with suppress(av.FFmpegError):
                    output.mux(muxed)
        return [folder / name]

    return make


def nothing_but(name: str, codec: str) -> Make:
    def make(folder: Path) -> Sequence[object]:
        with av.open(str(folder / name), "w") as output:
            output.mux(add_beside(output, codec))
        return [folder / name]

    return make


def song_with_cover(folder: Path) -> Sequence[object]:
    with av.open(str(folder / "song.mp3"), "w") as output:
        packets = add_beside(output, "mp3")
        cover = output.add_stream("mjpeg")
        cover.height, cover.width, cover.pix_fmt = *SIZE, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(picture(0, SIZE, "yuvj420p")))
        output.mux(packets)
    return [folder / "song.mp3"]


def sound_cases() -> Iterator[Case]:
    pairs = (("s.mp4", "aac"), ("s.ts", "aac"), ("m.mkv", "mp3"), ("s.mkv", "libopus"), ("s.mov", "pcm_s16le"))
    for name, codec in pairs:
        yield Case("sound", f"{name}, {codec}, empty", with_sound(name, codec, None), FRAMES)
        for what, bend in BENDS.items():
            yield Case("sound", f"{name}, {codec}, {what}", with_sound(name, codec, bend), FRAMES)
    for name, codec in (("a.mka", "flac"), ("a.wav", "pcm_s16le"), ("a.mp3", "mp3"), ("a.srt", "subrip")):
        yield Case("no picture", f"{codec} in {name}", nothing_but(name, codec), 0)
    yield Case("no picture", "a song with a cover", song_with_cover, 0)


# Pixel formats.

PIXELS = {
    "ffv1": (
        "gray", "gray10le", "gray16le", "ya8", "yuv410p", "yuv411p", "yuv422p", "yuv444p", "yuv440p", "yuv420p10le",
        "yuv422p12le", "yuv444p16le", "yuva420p", "yuva444p10le", "bgra", "bgr0", "gbrp10le", "gbrp16le", "rgb48le",
    ),
    "rawvideo": ("monob", "monow", "rgb565le", "rgb24", "nv12", "p010le", "uyvy422", "rgba64le", "gray12le"),
    "png": ("rgba", "monob", "ya8", "rgb48be"),
    "libx264": ("gray", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12"),
    "prores_ks": ("yuva444p10le",),
    "libvpx-vp9": ("yuva420p", "yuv440p", "gbrp"),
}  # fmt: skip


def pixel_cases() -> Iterator[Case]:
    for codec, formats in PIXELS.items():
        for pixel_format in formats:
            name = "p.nut" if codec in ("rawvideo", "png") else "p.mkv"
            yield Case("pixels", f"{codec} {pixel_format}", clip(name, Format(codec, pixel_format)), FRAMES)


# Masks beside a whole clip.


def masked(make_mask: Callable[[Path], object], *options: object) -> Make:
    def make(folder: Path) -> Sequence[object]:
        clip = encode(folder / "clip.mp4", Format(options=GROUPS))
        return [clip, "--mask", make_mask(folder), *options]

    return make


def written(name: str, data: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: of_bytes(name, data)(folder)[0]


def video_mask(harm: Harm) -> Callable[[Path], object]:
    return written("m.mkv", lambda: harm(whole("ffv1.mkv"), random.Random(1)))


def stills(pictures: Sequence[np.ndarray | bytes], suffix: str = ".png") -> Callable[[Path], Path]:
    """A folder of pictures; bytes are written as they are."""

    def write(folder: Path) -> Path:
        place = folder / "frames"
        place.mkdir()
        for number, still in enumerate(pictures):
            data = still if isinstance(still, bytes) else coded(still, suffix)
            (place / f"{number:03d}{suffix}").write_bytes(data)
        return place

    return write


def coded(still: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, still)[1].tobytes()


def mask_cases() -> Iterator[Case]:
    white = np.full((*SIZE, 3), 255, np.uint8)
    png, grey = coded(PICTURES[0]), Format("ffv1", "gray")
    made: dict[str, tuple[Callable[[Path], object], int]] = {
        "of another size": (stills([white[:7, :9]]), FRAMES),
        "of one pixel": (written("m.png", coded(white[:1, :1])), FRAMES),
        "with alpha": (written("m.png", coded(np.dstack([white, white[..., 0]]))), FRAMES),
        "of 16 bits": (
            written("m.png", coded(PICTURES[0].astype(np.uint16) * 257)),
            FRAMES,
        ),
        "a png with wrong bits": (written("m.png", flip_share(0.02)(png, random.Random(1))), -1),
        "a png cut off": (written("m.png", truncate(0.5)(png, random.Random(1))), -1),
        "empty": (written("m.png", b""), 0),
        "text": (written("m.png", b"white\n"), 0),
        "missing": (lambda folder: folder / "none.png", 0),
        "an empty folder": (stills([]), 0),
        "a folder with one frame too few": (stills(PICTURES[1:]), 0),
        "a folder with one too many": (stills([*PICTURES, white]), 0),
        "a folder with a damaged frame": (stills([*PICTURES[1:], png[:40]]), 0),
        "a folder with an empty frame": (stills([*PICTURES[1:], b""]), 0),
        "a folder of several sizes": (stills([*PICTURES[1:], white[:9]]), 0),
        "huge": (written("m.png", png_of(60_000, 60_000)), 0),
        "sound": (lambda folder: nothing_but("m.mka", "flac")(folder)[0], 0),
        "a whole video": (video_mask(lambda data, rng: data), FRAMES),
        "a video cut off": (video_mask(truncate(0.5)), 0),
        "a video with a block of noise": (video_mask(overwrite(0.2, True)), -1),
        "a video of another size": (
            lambda folder: encode(folder / "m.mkv", grey, sizes=[(9, 7)] * FRAMES),
            FRAMES,
        ),
        "the clip itself": (lambda folder: folder / "clip.mp4", FRAMES),
    }
    for what, (make_mask, frames) in made.items():
        yield Case("mask", what, masked(make_mask), frames)
    for box in ("0,0,1,1", "-5,-5,6,6", "31,23,900,900", "0,0,99999999999999999999,1"):
        yield Case("mask", f"box {box}", lambda folder, box=box: [encode(folder / "c.mp4"), f"--box={box}"], FRAMES)
    for box in ("32,24,1,1", "0,0,0,5", "1,2,3", "a,b,c,d", ""):
        yield Case("mask", f"box '{box}'", lambda folder, box=box: [encode(folder / "c.mp4"), f"--box={box}"], 0)


# Folders of frames.


def in_folder(pictures: Sequence[np.ndarray | bytes], suffix: str = ".png") -> Make:
    return lambda folder: [stills(pictures, suffix)(folder)]


def with_others(folder: Path) -> Sequence[object]:
    """Frames among what else lies in folders, with numbers of several lengths and a gap."""
    place = folder / "frames"
    place.mkdir()
    for number in (1, 2, 9, 10, 400):
        cv2.imwrite(str(place / f"shot {number}.png"), PICTURES[number % FRAMES])
    (place / "Thumbs.db").write_bytes(b"x")
    (place / ".hidden.png").write_bytes(b"x")
    (place / "11.png").mkdir()
    return [place]


def with_dead_link(folder: Path) -> Sequence[object]:
    place = stills(PICTURES)(folder)
    (place / "100.png").symlink_to(folder / "none.png")
    return [place]


def folder_cases() -> Iterator[Case]:
    jpg = coded(PICTURES[0], ".jpg")
    other = np.zeros((9, 9, 3), np.uint8)
    several = [coded(PICTURES[0], suffix) for suffix in (".tiff", ".bmp", ".webp")]
    yield Case("folder", "whole", in_folder(PICTURES), FRAMES)
    yield Case("folder", "numbers with gaps, other files", with_others, 5)
    yield Case("folder", "a link to nowhere", with_dead_link, FRAMES)
    yield Case("folder", "grey and colours", in_folder([PICTURES[0], PICTURES[1][..., 0]]), 2)
    yield Case("folder", "8 and 16 bits", in_folder([PICTURES[0], PICTURES[1].astype(np.uint16) * 257]), 2)
    yield Case("folder", "several sizes", in_folder([*PICTURES, other]), 0, "is 9x9 but")
    yield Case("folder", "an empty frame", in_folder([*PICTURES, b""]), 0)
    yield Case("folder", "a frame of noise", in_folder([*PICTURES, b"\x89PNG noise"]), 0)
    yield Case("folder", "text as frames", in_folder([b"a", b"b"]), 0)
    yield Case("folder", "jpg called png", in_folder([jpg, jpg]), 2)
    yield Case("folder", "a jpg cut off", in_folder([jpg, jpg[: len(jpg) // 2]], ".jpg"), -1)
    yield Case("folder", "a jpg with noise", in_folder([jpg, overwrite(0.2, True)(jpg, random.Random(3))], ".jpg"), -1)
    yield Case(
        "folder",
        "tiff, bmp, webp",
        in_folder(several),
        3,
    )


# Files that are no videos, or not what their names say.


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("clip.mp4", b"0" * 999)
    return data.getvalue()


def linked(folder: Path) -> Sequence[object]:
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    return [folder / "loop.mp4"]


def piped(folder: Path) -> Sequence[object]:
    os.mkfifo(folder / "pipe.mp4")
    return [folder / "pipe.mp4"]


def played(text: str) -> Make:
    """A playlist beside a whole clip."""

    def make(folder: Path) -> Sequence[object]:
        encode(folder / "clip.ts")
        (folder / "list.m3u8").write_text(text)
        return [folder / "list.m3u8"]

    return make


def stranger_cases() -> Iterator[Case]:
    noise = random.Random(5).randbytes(5000)
    strangers = {
        "zero bytes": b"", "one byte": b"\0", "zeros": bytes(9000), "noise": noise, "text": b"no video\n" * 99,
        "html": b"<html><body>404 not found</body></html>" * 9, "json": b'{"a": [1, 2]}', "zip": zipped(),
        "elf": b"\x7fELF" + noise, "pdf": b"%PDF-1.7\n" + noise, "concat list": b"ffconcat version 1.0\nfile '/a'\n",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n\n", "metadata": b";FFMETADATA1\ntitle=x\n",
        "ftyp alone": b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2", "riff alone": b"RIFF\xff\xff\xff\xffAVI LIST",
        "ebml alone": b"\x1aE\xdf\xa3", "y4m header": b"YUV4MPEG2 W32 H24 F0:0 Ip A1:1 C420\n",
    }  # fmt: skip
    for what, data in strangers.items():
        yield Case("no video", f"{what} in clip.mp4", of_bytes("clip.mp4", data), 0)
    for name in ("clip.png", "clip.jpg", "clip.webp", "clip.tiff", "clip.bmp"):
        yield Case("no video", f"noise in {name}", of_bytes(name, noise), 0)
        yield Case("no video", f"zero bytes in {name}", of_bytes(name, b""), 0)
    for name in (
        "clip.avi",
        "clip.mkv",
        "clip.txt",
        "clip",
        "clip.MP4",
        "clip.webm",
        "a b'c\"d%05d[1].mp4",
        "http:x.mp4",
    ):
        yield Case("suffix", f"mp4 in {name}", of_bytes(name, partial(whole, "h264.mp4")), FRAMES)
    yield Case("suffix", "mp4 in clip.png", of_bytes("clip.png", partial(whole, "h264.mp4")), 0)
    yield Case("suffix", "png in clip.mp4", of_bytes("clip.mp4", coded(PICTURES[0])), 1)
    yield Case("no video", "a link to itself", linked, 0)
    yield Case("no video", "a pipe", piped, 0)
    yield Case("no video", "a device", lambda folder: ["/dev/zero"], 0)
    yield Case("no video", "a missing file", lambda folder: [folder / "none.mp4"], 0)
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n"
    yield Case("playlist", "of one clip", played(f"{head}clip.ts\n#EXT-X-ENDLIST\n"), -1)
    yield Case("playlist", "that never ends", played(f"{head}clip.ts\n"), -1)
    yield Case("playlist", "of itself", played(f"{head}list.m3u8\n#EXT-X-ENDLIST\n"), 0)
    yield Case("playlist", "of the network", played(f"{head}http://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"), 0)
