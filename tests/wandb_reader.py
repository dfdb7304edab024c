"""Reads an offline W&B run back: ``run-ID.wandb`` is LevelDB's log format (blocks of 32 KiB, records in pieces with
CRC-32 sums) of W&B's own protocol buffers. wandb reads it in Go alone since 0.20, so its Python side is here."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7
_FULL, _LAST = 1, 4  # and 2: first, 3: middle


@dataclass
class OfflineRun:
    """What a run holds: ``history``, one mapping for each ``log``; ``config``; ``artifacts`` by name."""

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)
    finished: bool = False

    def series(self, name: str) -> list[Any]:
        """Every value of ``name``, in order."""
        return [row[name] for row in self.history if name in row]


def read_offline_run(folder: Path) -> OfflineRun:
    """The run in a folder such as ``wandb/offline-run-20260101_120000-abcdefgh``."""
    (log,) = folder.glob("*.wandb")
    run = OfflineRun()
    for data in _records(log.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "run":
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "exit":
            run.finished = record.exit.exit_code == 0
        elif kind == "artifact":
            run.artifacts[record.artifact.name] = record.artifact
    return run


def _values(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *parents, name = [item.key] if item.key else item.nested_key
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = json.loads(item.value_json)
    return values


def _records(data: bytes) -> Iterator[bytes]:
    if data[:4] != b":W&B":
        raise ValueError("no W&B log")
    at, whole = _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # no header fits: the block is padded
            at += left
            continue
        total, length, kind = struct.unpack_from("<IHB", data, at)
        piece = data[at + _HEADER : at + _HEADER + length]
        if zlib.crc32(bytes([kind]) + piece) != total:
            raise ValueError(f"wrong check sum at byte {at}")
        at += _HEADER + length
        whole += piece
        if kind in (_FULL, _LAST):
            yield whole
            whole = b""
