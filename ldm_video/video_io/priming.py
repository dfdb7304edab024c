"""Sound that a decoder needs before the first that is heard, in Matroska, where no time is below 0."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
from av.packet import Packet
from av.stream import Stream

# Of a Matroska file (RFC 9559, 5.1.4.1): the track's name in eight letters, and what stands in its place as many bytes
# long: its codec delay, of eight bytes.
_NAME = "priming!"
_TRACK_NAME = bytes.fromhex("536e88") + _NAME.encode()
_CODEC_DELAY = bytes.fromhex("56aa88")


@contextmanager
def primed(template: Stream, packet: Packet, seconds: Fraction) -> Iterator[Stream]:
    """``template``, of whose sound the first ``seconds`` are to be decoded and not heard; ``packet`` is one of its own.

    Without it FFmpeg's muxer moves everything in the file, the picture too, until what is not heard begins at 0. With
    it the delay is in the track's header, and players subtract it. PyAV has no name for it (``initial_padding``), so
    it comes from a file in memory. Leaves ``packet`` with other times.
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
