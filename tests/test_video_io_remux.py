"""Chapters, and subtitles of clocks that jump, beside a picture that is written anew."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.container import OutputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from tests.test_video_io_write import FAST, clip_with_everything, copy_times
from tests.video_io_support import packet_bytes, packet_times, pan, texture, yuv_frame


def encode_pan(output: OutputContainer, video: VideoStream, frames: int) -> None:
    """All of the picture, 25 frames a second."""
    for i, image in enumerate(pan(frames, 64, 96)):
        frame = yuv_frame(image)
        frame.pts, frame.time_base = i, Fraction(1, 25)
        output.mux(video.encode(frame))
    output.mux(video.encode(None))


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_chapters_are_copied(tmp_path: Path, suffix: str, sound: bool) -> None:
    clip = tmp_path / f"in{suffix}"
    with av.open(str(clip), "w") as output:
        video = output.add_stream("libx264", rate=25, options=FAST)
        video.width, video.height = 96, 64
        if sound:
            output.add_stream("aac", rate=48000)
        output.set_chapters(
            [
                {
                    "id": i,
                    "start": 400 * i,
                    "end": 400 * (i + 1),
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": title},
                }
                for i, title in enumerate(["Arrival", "Departure"])
            ]
        )
        encode_pan(output, video, 20)
    copy_times(clip, tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as written:
        chapters = [(c["metadata"]["title"], float(c["start"] * c["time_base"])) for c in written.chapters()]
    assert chapters == [("Arrival", 0.0), ("Departure", pytest.approx(0.4))]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".m4v", ".mov", ".ts"])
def test_sound_that_an_edit_list_cuts_off_is_not_heard(tmp_path: Path, suffix: str) -> None:
    """As phones trim: picture and sound of half a second are in the file, and not shown."""
    clip = clip_with_everything(tmp_path / "in.mp4", "", start=Fraction(-12, 25))
    copy_times(clip, tmp_path / f"out{suffix}")
    heard = []
    for path in (clip, tmp_path / f"out{suffix}"):
        with av.open(str(path)) as container:
            begins = min(frame.pts * frame.time_base for frame in container.decode(video=0))
        with av.open(str(path)) as container:
            sound = [frame.pts * frame.time_base - begins for frame in container.decode(audio=0)]
        heard.append((float(sound[0]), len(sound)))
    assert heard[0] == (pytest.approx(0, abs=0.03), 72)
    # What the decoder needs before is there, a tenth of a second at most.
    assert heard[1] == (pytest.approx(-0.05, abs=0.06), pytest.approx(74, abs=3))


def cut_sound(clip: Path, edits: Sequence[tuple[float | None, float]]) -> None:
    """Give an MP4's last track, of sound, an edit list: where parts begin (None: silence) and how long they are.

    In seconds; ISO 14496-12, 8.6.6.
    """
    data = bytearray(clip.read_bytes())
    at = data.rindex(b"elst")
    assert data[at + 8 : at + 12] == (1).to_bytes(4, "big")
    assert data.index(b"mdat") < at  # else what the tables point to would move
    entries = [
        round(1000 * length).to_bytes(4, "big")
        # AAC begins 1024 samples early.
        + (-1 if start is None else 1024 + round(48000 * start)).to_bytes(4, "big", signed=True)
        + bytes([0, 1, 0, 0])  # at its own speed
        for start, length in edits
    ]
    data[at + 8 : at + 24] = len(entries).to_bytes(4, "big") + b"".join(entries)
    for box in (b"elst", b"edts", b"trak", b"moov"):
        size = data.rindex(box) - 4
        grown = int.from_bytes(data[size : size + 4], "big") + 12 * (len(entries) - 1)
        data[size : size + 4] = grown.to_bytes(4, "big")
    clip.write_bytes(data)


@pytest.mark.parametrize(
    ("edits", "suffix"),
    [
        ([(0, 1.5)], ".mkv"),
        ([(0, 1.5)], ".mp4"),
        ([(0, 0.5), (1, 0.5)], ".mkv"),
        ([(0, 0.5), (1, 0.5)], ".mp4"),
        # Silence first, then what begins with a cut.
        ([(None, 0.5), (0.3, 0.5)], ".mkv"),
        ([(None, 0.5), (1.024, 0.5)], ".mkv"),  # 48 packets
        ([(None, 0.5), (1.024, 0.5)], ".mp4"),
    ],
)
def test_sound_that_an_edit_list_cuts_off_does_not_return(
    tmp_path: Path, edits: Sequence[tuple[float | None, float]], suffix: str
) -> None:
    clip = clip_with_everything(tmp_path / "in.mp4", "")
    cut_sound(clip, edits)
    copy_times(clip, tmp_path / f"out{suffix}")
    want, got = decoded(clip, "audio"), decoded(tmp_path / f"out{suffix}", "audio")
    heard = sum(length for start, length in edits if start is not None) * 48000 / 1024  # packets
    assert heard - 1 <= len(want) <= heard + 2 * len(edits)
    times = [float(time) for time, _ in want]
    assert [float(time) for time, _ in got] == pytest.approx(times, abs=2e-3)  # both files may round, to milliseconds
    assert copy_times.warnings == []


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
def test_the_first_frame_of_sound_comes_whole(tmp_path: Path, suffix: str) -> None:
    """Of AAC it is the second that is heard; the first, which an edit list hides, is half of it."""
    clip = clip_with_everything(tmp_path / "in.mp4", "")
    copy_times(clip, tmp_path / f"out{suffix}")
    first = []
    for path in (clip, tmp_path / f"out{suffix}"):
        with av.open(str(path)) as container:
            begins = min(frame.pts * frame.time_base for frame in container.decode(video=0))
        with av.open(str(path)) as container:
            frames = ((frame.pts * frame.time_base - begins, frame) for frame in container.decode(audio=0))
            first.append(next(frame.to_ndarray() for seconds, frame in frames if seconds > -0.002))
    np.testing.assert_allclose(first[1], first[0], atol=1e-4)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_fonts_of_subtitles_go_along(tmp_path: Path, suffix: str) -> None:
    font, clip = b"OTTO" + bytes(range(256)), tmp_path / "in.mkv"
    with av.open(str(clip), "w") as output:
        video = output.add_stream("libx264", rate=25, options=FAST)
        video.width, video.height = 96, 64
        output.add_mux_stream("ass")
        output.add_attachment("Łódź.otf", "font/otf", font)
        encode_pan(output, video, 5)
    copy_times(clip, tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as written:
        got = [(a.name, a.mimetype, bytes(a.data)) for a in written.streams.attachments]
    assert got == ([("Łódź.otf", "font/otf", font)] if suffix == ".mkv" else [])


@pytest.mark.parametrize("codec", ["aac", "flac"])
def test_a_transport_stream_takes_no_sound_that_is_lost_in_it(tmp_path: Path, codec: str) -> None:
    """It has no name for FLAC, and its muxer says nothing. Nor has it one for text."""
    clip = tmp_path / "in.mkv"
    with av.open(str(clip), "w") as output:
        video = output.add_stream("libx264", rate=25, options=FAST)
        video.width, video.height = 96, 64
        audio, text = output.add_stream(codec, rate=48000), output.add_mux_stream("subrip")
        encode_pan(output, video, 5)
        block = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 9600), np.int16), format="s16", layout="stereo")
        block.sample_rate, block.pts = 48000, 0
        packet = av.Packet(b"Hello")
        packet.stream, packet.pts, packet.dts, packet.duration, packet.time_base = text, 0, 0, 100, Fraction(1, 1000)
        output.mux([*audio.encode(block), *audio.encode(None), packet])
    info = copy_times(clip, tmp_path / "out.ts")
    kept = codec == "aac"
    assert (info.audio_streams, info.subtitle_streams) == (int(kept), 0)
    assert ["audio stream 1 (flac)" in line for line in copy_times.warnings] == [True, False][kept:]


def test_rare_subtitles_of_a_broadcast_keep_their_times(tmp_path: Path) -> None:
    """Gaps between them are no jumps of the clock; where sound and picture jump, they go along."""
    clip, shows = tmp_path / "in.ts", [1, 14, 27, 1000 + 30]
    with av.open(str(clip), "w") as output:
        video = output.add_stream("mpeg2video", rate=1)
        video.width, video.height = 96, 64
        audio = output.add_stream("mp2", rate=48000)
        rare = output.add_mux_stream("dvb_subtitle")
        for second in range(32):
            jumped = second + 1000 * (second >= 28)
            frame = yuv_frame(texture(64, 96))
            frame.pts, frame.time_base = jumped, Fraction(1)
            output.mux(video.encode(frame))
            for i in range(40):
                block = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1200), np.int16), format="s16", layout="stereo")
                block.sample_rate, block.time_base = 48000, Fraction(1, 48000)
                block.pts = 48000 * jumped + 1200 * i
                output.mux(audio.encode(block))
            if jumped in shows:
                packet = av.Packet(bytes.fromhex("200f14000000000000000000ff"))
                packet.stream, packet.time_base = rare, Fraction(1, 1000)
                packet.pts = packet.dts = 1000 * jumped
                output.mux(packet)
        output.mux(video.encode(None))
    copy_times(clip, tmp_path / "out.mkv")
    got = [float(t) for t, _ in packet_bytes(tmp_path / "out.mkv", "subtitle")]
    assert np.diff(got) == pytest.approx([13, 13, 3], abs=1.1)  # a second is a frame's


def decoded(path: Path, kind: str) -> list[tuple[Fraction, np.ndarray]]:
    """Times and samples of what a player shows, or lets hear."""
    with av.open(str(path)) as container:
        (stream,) = (stream for stream in container.streams if stream.type == kind)
        return [(frame.pts * frame.time_base, frame.to_ndarray()) for frame in container.decode(stream)]


@pytest.mark.parametrize("start", [Fraction(0), Fraction(-12, 25)])
def test_matroska_keeps_the_picture_where_it_is_beside_sound_that_is_not_heard(tmp_path: Path, start: Fraction) -> None:
    """AAC begins with a packet that an edit list hides, at -21 ms; Matroska has no time below 0."""
    clip = clip_with_everything(tmp_path / "in.mp4", "", start=start)
    copy_times(clip, tmp_path / "out.mkv")
    want, got = decoded(clip, "video"), decoded(tmp_path / "out.mkv", "video")
    assert [time for time, _ in got] == [time for time, _ in want] == [Fraction(i, 25) for i in range(len(want))]
    want, got = decoded(clip, "audio"), decoded(tmp_path / "out.mkv", "audio")
    assert [float(time) for time, _ in got] == pytest.approx([float(time) for time, _ in want], abs=1e-3)
    np.testing.assert_allclose(np.stack([s for _, s in got[1:]]), np.stack([s for _, s in want[1:]]), atol=1e-3)
    assert got[0][1].shape == want[0][1].shape


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "ac3", "libopus", "flac"])
def test_matroska_keeps_the_picture_where_it_is_beside_sound_of(tmp_path: Path, codec: str) -> None:
    """Of MP3 and AC-3 a part of the first packet is heard, of AAC nothing, of FLAC all of it."""
    clip = tmp_path / "in.mp4"
    with av.open(str(clip), "w") as output:
        video, audio = output.add_stream("libx264", rate=25, options=FAST), output.add_stream(codec, rate=48000)
        video.width, video.height = 96, 64
        encode_pan(output, video, 20)
        tone = (6000 * np.sin(np.arange(38400) * 0.05)).astype(np.int16).repeat(2)[None]  # stereo, interleaved
        block = av.AudioFrame.from_ndarray(tone, format="s16", layout="stereo")
        block.sample_rate, block.pts = 48000, 0
        to_encoder = av.AudioResampler(audio.format.name, "stereo", 48000, audio.codec_context.frame_size or 1024)
        for part in [*to_encoder.resample(block), *to_encoder.resample(None), None]:
            output.mux(audio.encode(part))
    copy_times(clip, tmp_path / "out.mkv")
    assert not copy_times.warnings
    assert [time for time, _ in decoded(tmp_path / "out.mkv", "video")] == [Fraction(i, 25) for i in range(20)]
    want, got = decoded(clip, "audio"), decoded(tmp_path / "out.mkv", "audio")
    assert float(got[0][0]) == pytest.approx(float(want[0][0]), abs=1e-3)
    first = min(want[0][1].shape[-1], got[0][1].shape[-1])
    np.testing.assert_allclose(got[0][1][..., :first], want[0][1][..., :first], atol=1e-3)


def test_sound_that_is_not_heard_keeps_its_name_and_chapters_their_times(tmp_path: Path) -> None:
    clip = tmp_path / "in.mp4"
    with av.open(str(clip), "w") as output:
        video, audio = output.add_stream("libx264", rate=25, options=FAST), output.add_stream("aac", rate=48000)
        video.width, video.height = 96, 64
        audio.metadata["language"] = "ger"
        times = [{"start": start, "end": start + 400, "time_base": Fraction(1, 1000)} for start in (0, 400)]
        output.set_chapters([{"id": i, "metadata": {"title": str(i)}} | time for i, time in enumerate(times)])
        encode_pan(output, video, 20)
        block = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 38400), np.int16), format="s16", layout="stereo")
        block.sample_rate, block.pts = 48000, 0
        output.mux([*audio.encode(block), *audio.encode(None)])
    copy_times(clip, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as written:
        assert [chapter["start"] * chapter["time_base"] for chapter in written.chapters()] == [0, Fraction(2, 5)]
        assert dict(written.streams.audio[0].metadata) | {"DURATION": ""} == {"language": "ger", "DURATION": ""}
    assert [time for time, _ in decoded(tmp_path / "out.mkv", "video")] == [Fraction(i, 25) for i in range(20)]


def test_sound_for_the_hard_of_hearing_stays_marked_as_such(tmp_path: Path) -> None:
    clip = tmp_path / "in.mkv"
    marks = [Disposition.default | Disposition.original, Disposition.hearing_impaired, Disposition.comment]
    with av.open(str(clip), "w") as output:
        video = output.add_stream("libx264", rate=25, options=FAST)
        video.width, video.height = 96, 64
        sound = [output.add_stream("aac", rate=48000) for _ in marks]
        for stream, mark in zip(sound, marks, strict=True):
            stream.disposition = mark
        encode_pan(output, video, 5)
        for stream in sound:
            block = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 9600), np.int16), format="s16", layout="stereo")
            block.sample_rate, block.pts = 48000, 0
            output.mux([*stream.encode(block), *stream.encode(None)])
    copy_times(clip, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as written:
        assert [stream.disposition for stream in written.streams.audio] == marks


def test_after_a_jump_of_the_clock_sound_and_picture_go_on_without_a_gap(tmp_path: Path) -> None:
    clip = tmp_path / "in.ts"
    with av.open(str(clip), "w") as output:
        video, audio = output.add_stream("mpeg2video", rate=25), output.add_stream("mp2", rate=48000)
        video.width, video.height = 96, 64
        image = texture(64, 96)
        for i in range(75):  # 24 ms of sound, and 40 ms of picture for each five of its three
            late = 30 + 1000 * (i >= 30)
            if i % 5 in (0, 2, 4):
                frame = yuv_frame(image)
                frame.pts, frame.time_base = 25 * late + 3 * (i // 5) + i % 5 // 2, Fraction(1, 25)
                output.mux(video.encode(frame))
            block = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1152), np.int16), format="s16", layout="stereo")
            block.sample_rate, block.time_base = 48000, Fraction(1, 48000)
            block.pts = 48000 * late + 1152 * i
            output.mux(audio.encode(block))
        output.mux(video.encode(None))
    copy_times(clip, tmp_path / "out.mkv")
    sound = [time for time, _ in packet_bytes(tmp_path / "out.mkv", "audio")]
    assert set(np.diff(sound)) == {Fraction(24, 1000)}
    assert set(np.diff(packet_times(tmp_path / "out.mkv"))) == {Fraction(40, 1000)}
