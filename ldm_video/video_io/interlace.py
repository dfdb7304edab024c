"""Interlacing: detection (``idet``) and deinterlacing (``bwdif``).

Stream flags are wrong in both directions: progressive film is often coded as interlaced ("PsF"), and captured tapes are
often coded as progressive with the fields woven in. So the pixels decide; the flags count if the pixels are
inconclusive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import av
from av.filter import Graph

from ldm_video.video_io.container import Damage, decoded_frames, open_video

FieldOrder = Literal["progressive", "tff", "bff", "auto"]  # auto: interlaced, order as the stream says
SAMPLES = 3  # places of the clip that detection looks at: titles at the start are often progressive
FRAMES_PER_SAMPLE = 40
MAX_INTERLACED_HEIGHT = 1088  # no broadcast standard interlaces above 1080 lines
MIN_SIDE = 16  # smaller pictures have no room for the filters


def detect_field_order(path: Path) -> FieldOrder:
    """Examine up to ``SAMPLES * FRAMES_PER_SAMPLE`` frames. Telecined film counts as interlaced."""
    counts: Counter[str] = Counter()
    with open_video(path) as (container, stream):
        if min(stream.height, stream.width) < MIN_SIDE or stream.height > MAX_INTERLACED_HEIGHT:
            return "progressive"
        for place in range(SAMPLES):
            if place and not _seek(container, stream, Fraction(place, SAMPLES)):
                break
            found = classify(islice(decoded_frames(container, stream, Damage()), FRAMES_PER_SAMPLE))
            counts.update(found)
            if found["frames"] < FRAMES_PER_SAMPLE:
                break
    return decide(counts)


def classify(frames: Iterable[av.VideoFrame]) -> Counter[str]:
    """Count idet's verdicts on consecutive frames (tff, bff, progressive, undetermined), and flagged frames."""
    counts: Counter[str] = Counter()

    def alike() -> Iterator[av.VideoFrame]:
        shape = None
        for frame in frames:
            shape = shape or _shape(frame)
            if _shape(frame) == shape:  # a filter graph works for one picture format
                counts.update(frames=1, flagged=int(frame.interlaced_frame))
                yield frame

    for frame in _run(alike(), "idet"):
        counts[frame.metadata.get("lavfi.idet.multiple.current_frame", "undetermined")] += 1
    return counts


def decide(counts: Counter[str]) -> FieldOrder:
    """Turn the counts of :func:`classify` into a verdict for the whole clip."""
    combed, progressive = counts["tff"] + counts["bff"], counts["progressive"]
    looked_at = combed + progressive + counts["undetermined"]
    flagged = counts["flagged"] * 2 > looked_at
    if combed + progressive == 0:
        return "auto" if flagged else "progressive"
    # Telecine combs 2 frames of 5; if the stream's flags agree, that is enough.
    if combed > progressive or (flagged and combed * 4 > progressive):
        return "tff" if counts["tff"] >= counts["bff"] else "bff"
    return "progressive"


def deinterlace(frames: Iterable[av.VideoFrame], order: FieldOrder) -> Iterator[av.VideoFrame]:
    """Yield one full frame per interlaced frame, same count, same times (``bwdif``, ``send_frame``)."""
    parity = "auto" if order in ("auto", "progressive") else order
    return _run(frames, "bwdif", f"mode=send_frame:parity={parity}:deint=all")


def _run(frames: Iterable[av.VideoFrame], name: str, options: str | None = None) -> Iterator[av.VideoFrame]:
    graph: Graph | None = None
    for frame in frames:
        if graph is None:
            graph = _graph(frame, name, options)
        graph.vpush(frame)
        yield from _pull(graph)
    if graph is not None:
        graph.vpush(None)
        yield from _pull(graph)


def _graph(frame: av.VideoFrame, name: str, options: str | None) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
    )
    graph.link_nodes(source, graph.add(name, options), graph.add("buffersink")).configure()
    return graph


def _pull(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def _shape(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _seek(container: av.container.InputContainer, stream: av.VideoStream, part: Fraction) -> bool:
    if not container.duration:
        return False
    try:
        container.seek(int((container.start_time or 0) + container.duration * part))
    except av.FFmpegError:
        return False
    return True
