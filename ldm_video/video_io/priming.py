"""Audio priming (decoder delay) in Matroska, which has no time stamps below 0."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
from av.packet import Packet
from av.stream import Stream

# Matroska elements (RFC 9559, 5.1.4.1): the track's name, of eight letters, and its replacement of the same length in
# bytes: the codec delay, of eight bytes.
_NAME = "priming!"
_TRACK_NAME = bytes.fromhex("536e88") + _NAME.encode()
_CODEC_DELAY = bytes.fromhex("56aa88")


@contextmanager
def primed(template: Stream, packet: Packet, seconds: Fraction) -> Iterator[Stream]:
    """Copy ``template`` with a codec delay: its first ``seconds`` of audio are decoded but not heard.

    Without it, FFmpeg's muxer shifts everything in the file, the picture too, until the unheard part begins at 0. With
    it, the delay is in the track's header, and players subtract it. PyAV does not expose it (``initial_padding``), so
    the stream is read from a file in memory. ``packet`` is one of the template's own; its times are changed.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="matroska", options={"write_crc32": "0"}) as output:
        stream = output.add_stream_from_template(template)
        stream.metadata["title"] = _NAME
        packet.stream, packet.pts, packet.dts = stream, 0, 0
        output.mux(packet)
    nanoseconds = round(seconds * 10**9)
    data = file.getvalue().replace(_TRACK_NAME, _CODEC_DELAY + nanoseconds.to_bytes(8, "big"), 1)
    with av.open(io.BytesIO(data)) as container:
        yield container.streams.audio[0]
