"""Encoded frames with exact times in one file: a part of a video that is joined later.

A container would not do: NUT holds no ProRes, Matroska rounds times to milliseconds, MP4 rewrites packets and shifts
times with edit lists. A part holds the encoder's packets unchanged, in decoding order, in a safetensors file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from ldm_video.core.errors import UserError


@dataclass(frozen=True)
class Packets:
    """One entry per frame, in decoding order: bytes, presentation time in encoder ticks, whether a key frame."""

    data: list[bytes]
    pts: list[int]
    keys: list[bool]


def write_packets(path: Path, packets: Packets) -> None:
    """Write packets to ``path``. Raises ``OSError``, such as for a full disk."""
    arrays: dict[str, np.ndarray] = {
        "data": np.frombuffer(b"".join(packets.data), np.uint8),
        "sizes": np.array([len(data) for data in packets.data], np.int64),
        "pts": np.array(packets.pts, np.int64),
        "keys": np.array(packets.keys, np.uint8),
    }
    path.write_bytes(save(arrays))  # save_file would wrap the operating system's errors and drop their numbers


def read_packets(path: Path) -> Packets:
    """Read what :func:`write_packets` wrote; ``UserError`` for a damaged file."""
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error
    ends = np.cumsum(arrays["sizes"]).tolist()
    starts = [0, *ends[:-1]]
    whole = arrays["data"].tobytes()
    data = [whole[start:end] for start, end in zip(starts, ends, strict=True)]
    return Packets(data, arrays["pts"].tolist(), arrays["keys"].astype(bool).tolist())


def reorder_depth(path: Path) -> int:
    """Return by how many frames decoding must precede presentation, so that no frame is due before it is decoded."""
    try:
        with safe_open(path, framework="np") as file:
            pts = file.get_tensor("pts")
    except SafetensorError as error:
        raise _damaged(path, error) from error
    rank = np.argsort(np.argsort(pts))
    return int((np.arange(len(pts)) - rank).max(initial=0))


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({error}); remove it and run the same command again")
