"""Copy the source's audio and subtitles packet by packet, never re-encoded, and the fonts for subtitles."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream

from ldm_video.video_io.clocks import JoinedClock
from ldm_video.video_io.container import open_input
from ldm_video.video_io.priming import primed
from ldm_video.video_io.probe import VideoInfo

_EDIT_LIST_FORMATS = {"mp4", "mov", "ipod", "3gp", "3g2"}  # their edit lists say what is not shown; ipod is .m4v
_PREROLL = Fraction(1, 10)  # seconds of audio pre-roll that a decoder may need: 80 ms in Opus
_LOOKAHEAD = 500  # packets, of all copied streams together, searched for the first one of each
_USUAL_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # AVI and WAV give only the number of channels
# Errors of a muxer that rejects a packet, as opposed to a full disk.
_REJECTIONS = (av.error.InvalidDataError, av.error.ArgumentError, av.error.PatchWelcomeError)


class StreamCopier:
    """Copies audio and subtitle streams of ``source`` into ``output`` in sync with the picture.

    Streams that the container cannot hold are left out with a warning each, and damaged packets are too: audio never
    makes the picture fail. What the source's edit list hides before 0 stays, unheard, in containers with edit lists;
    Matroska keeps the part that decoders need as the track's delay. Time stamps keep their distance to the picture:
    both are reduced by ``source.time_origin``.
    """

    def __init__(self, source: VideoInfo | None, output: OutputContainer, target: Path, warnings: list[str]) -> None:
        self._stack = ExitStack()
        self._output = output
        self._source = source
        self._warnings = warnings
        self._streams: dict[int, Stream] = {}
        self._clocks: dict[int, JoinedClock] = {}  # of audio
        self._packets: Iterator[Packet] = iter(())
        self._waiting: Packet | None = None
        self._begun: set[int] = set()  # streams in which nothing hidden leads up to what is heard any more
        self._left_out = 0  # packets
        if source is None or source.kind != "video":
            return
        container = self._stack.enter_context(open_input(source.path))
        templates = [*container.streams.audio, *container.streams.subtitles]
        first, self._begun = _first_packets(source.path, output.format.name) if templates else ({}, set())
        for template in templates:
            packet = first.get(template.index)
            priming = _priming_seconds(template, packet, output.format.name)
            problem = _why_rejected(template, packet, output.format.name)
            if problem:
                warnings.append(_left_out(template, target, problem))
            else:
                self._streams[template.index] = _add_copy(output, template, packet, priming)
                if template.type == "audio":
                    self._clocks[template.index] = JoinedClock(source)
        self._copy_chapters(container)
        self._copy_attachments(container)
        if self._streams:
            copied = [template for template in templates if template.index in self._streams]
            self._packets = container.demux(copied)
            self._waiting = self._next()

    def advance(self, until: Fraction | None) -> None:
        """Mux the packets that come before ``until`` seconds; all remaining ones for ``None``."""
        while self._waiting is not None and (until is None or self._seconds(self._waiting) <= until):
            packet, self._waiting = self._waiting, self._next()
            packet.stream = self._streams[packet.stream.index]
            try:
                self._output.mux(packet)
            except _REJECTIONS:
                self._left_out += 1
        if until is None and self._left_out:
            self._warnings.append(f"{self._left_out} damaged packets of sound or subtitles are left out")
            self._left_out = 0

    def close(self) -> None:
        """Close the source."""
        self._stack.close()

    def _next(self) -> Packet | None:
        try:
            for packet in self._packets:
                timed = packet.dts is not None or packet.pts is not None
                index = packet.stream.index
                if packet.size and timed and not _is_trimmed(packet, self._output.format.name, index in self._begun):
                    if not packet.is_discard:
                        self._begun.add(index)
                    return self._shifted(packet)
        except av.FFmpegError as error:
            self._warnings.append(f"sound or subtitles end early, the source is damaged ({error.strerror})")
        return None

    def _shifted(self, packet: Packet) -> Packet:
        assert self._source is not None
        if packet.dts is None:
            packet.dts = packet.pts
        seconds = self._joined(packet, packet.dts * packet.time_base - self._source.time_origin)
        ticks = packet.dts - round(seconds / packet.time_base)
        packet.dts -= ticks
        if packet.pts is not None:
            packet.pts -= ticks
        return packet

    def _joined(self, packet: Packet, seconds: Fraction) -> Fraction:
        """Map ``seconds`` to the clock of the packet's stream; sparse subtitles use the first audio stream's."""
        if packet.stream.index in self._clocks:
            return self._clocks[packet.stream.index](seconds, (packet.duration or 0) * packet.time_base)
        return next(iter(self._clocks.values())).beside(seconds) if self._clocks else seconds

    def _seconds(self, packet: Packet) -> Fraction:
        return packet.dts * packet.time_base

    def _copy_chapters(self, container: InputContainer) -> None:
        if self._source is not None and not self._source.time_origin and container.chapters():
            self._output.set_chapters(container.chapters())

    def _copy_attachments(self, container: InputContainer) -> None:
        """Copy attachments, usually fonts, which only Matroska has. The muxer requires their name and type."""
        if self._output.format.name != "matroska":
            return
        for attached in container.streams.attachments:
            if attached.name and attached.mimetype and attached.data:
                self._output.add_attachment(attached.name, attached.mimetype, attached.data)


def _is_trimmed(packet: Packet, container_format: str, begun: bool = False) -> bool:
    """Return whether the source's edit list hides the packet and the output could not hide it.

    Formats with edit lists hide what comes before 0, but not if the stream has ``begun``, or begins with silence.
    """
    if not packet.is_discard:
        return False
    seconds = _start_seconds(packet)
    if begun or seconds is None or seconds >= 0:
        return True
    return container_format not in _EDIT_LIST_FORMATS and seconds < -_PREROLL


def _start_seconds(packet: Packet) -> Fraction | None:
    """Return when the packet begins, in seconds."""
    ticks = packet.dts if packet.pts is None else packet.pts
    return None if ticks is None else ticks * packet.time_base


def _priming_seconds(template: Stream, packet: Packet | None, container_format: str) -> Fraction:
    """Return the seconds from ``packet``, the stream's first copied one, to the first audible sound in the source.

    Only from MP4, where audio before 0 is not heard, to Matroska; not for Opus, which has its own pre-skip.
    """
    if packet is None or container_format != "matroska" or template.type != "audio":
        return Fraction(0)
    edited = not _EDIT_LIST_FORMATS.isdisjoint(template.container.format.name.split(","))
    seconds, opus = _start_seconds(packet), template.codec_context.codec.canonical_name == "opus"
    if not edited or opus or seconds is None or _is_trimmed(packet, container_format):
        return Fraction(0)
    return max(Fraction(0), -seconds)


def _add_copy(
    output: OutputContainer, template: Stream, packet: Packet | None = None, priming: Fraction = Fraction(0)
) -> Stream:
    """Add a copy of the stream ``template``; ``packet`` is one of its own.

    ``priming``: see :func:`_priming_seconds`.
    """
    with primed(template, packet, priming) if packet is not None and priming else nullcontext(template) as copied:
        stream = output.add_stream_from_template(copied)
    stream.metadata.update({k: v for k, v in template.metadata.items() if k in ("language", "title")})
    stream.disposition = template.disposition
    if template.type == "audio" and template.layout.name.endswith(" channels"):  # the order of channels is unspecified
        stream.layout = _USUAL_LAYOUTS.get(template.layout.nb_channels, template.layout.name)
    return stream


def _first_packets(path: Path, container_format: str) -> tuple[dict[int, Packet], set[int]]:
    """Return the first copied packet of each audio or subtitle stream, if it comes early enough, or else any.

    Also returns which streams begin with silence, whatever their edit list hides before.
    """
    found, copied, shown = dict[int, Packet](), set[int](), dict[int, Packet]()
    with open_input(path) as container, suppress(av.FFmpegError):
        streams = [*container.streams.audio, *container.streams.subtitles]
        for packet in islice(container.demux(streams), _LOOKAHEAD):
            index = packet.stream.index
            if packet.size and index not in copied:
                found[index] = packet
                if not _is_trimmed(packet, container_format):
                    copied.add(index)
            if packet.size and not packet.is_discard:
                shown.setdefault(index, packet)
            if len(shown) == len(streams):
                break
    late = {index: packet for index, packet in shown.items() if _is_late(packet)}
    return found | late, set(late)


def _is_late(packet: Packet) -> bool:
    """Return whether the packet, the first that is shown of its stream, begins more than its duration after 0."""
    seconds = _start_seconds(packet)
    return seconds is not None and seconds > (packet.duration or 0) * packet.time_base


def _why_rejected(template: Stream, packet: Packet | None, container_format: str) -> str | None:
    """Return why the output cannot hold the stream, or None, by writing a file with it alone into memory.

    Only the muxer itself knows what it can hold. MPEG-TS takes everything, but what it has no name for becomes data
    that no player recognises as audio or subtitles.
    """
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=container_format) as trial:
            stream = _add_copy(trial, template)
            trial.start_encoding()
            if packet is not None:
                with suppress(*_REJECTIONS):  # it is damaged; the next one may be intact
                    packet.stream, packet.pts, packet.dts = stream, 0, 0
                    trial.mux(packet)
    except (ValueError, av.FFmpegError) as error:
        return str(getattr(error, "strerror", None) or error)
    return "it would be nothing but data" if packet is not None and _is_data(file) else None


def _is_data(file: io.BytesIO) -> bool:
    """Return whether a readable file holds only data streams."""
    file.seek(0)
    with suppress(av.FFmpegError), av.open(file) as container:
        return {stream.type for stream in container.streams} == {"data"}
    return False


def _left_out(template: Stream, target: Path, problem: str) -> str:
    codec = template.codec_context.codec.canonical_name if template.codec_context is not None else "unknown codec"
    advice = f"the muxer says: {problem}" if target.suffix.lower() == ".mkv" else "write to .mkv to keep it"
    return (
        f"{template.type} stream {template.index} ({codec}) does not fit into {target.name} and is left out; {advice}"
    )
