"""Results on disk: a CSV row per frame, a JSON file per clip, a summary with 95 % bootstrap intervals."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.clips import ClipPair
from eval.file_states import file_states
from eval.scoring import ClipScores, MetricChoice, Scores, Tools
from ldm_video import __version__
from ldm_video.core.device import find_device
from ldm_video.core.files import atomic_path
from ldm_video.core.revision import git_revision

RESAMPLES = 10_000
FORMAT = 2  # raise it if a metric changes: earlier scores are then recomputed


def recipe(metrics: Iterable[MetricChoice], tools: Tools) -> str:
    """Return what scores depend on apart from files."""
    return f"{FORMAT} {[str(m) for m in metrics]} {tools}"


def fingerprint(
    pair: ClipPair, metrics: Iterable[MetricChoice], tools: Tools, missing: Mapping[str, str] | None = None
) -> str:
    """Return a hash of the files (path, size, modification time), metrics, tools and ``missing``.

    ``missing``: metrics without weights, and why. Once the weights are there, the clip is rescored.
    """
    digest = hashlib.sha256(f"{recipe(metrics, tools)} {sorted((missing or {}).items())}".encode())
    files_of = pair.inputs() | ({"raft": Path(tools.raft)} if tools.raft else {})
    for role, path in files_of.items():
        digest.update(f"{role} {file_states(path)}".encode())
    return digest.hexdigest()


def load_clip(folder: Path, name: str, wanted: str) -> dict[str, Any] | None:
    """Return the record of a clip scored earlier with the same :func:`fingerprint`, else None."""
    path = folder / "clips" / f"{name}.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    same = isinstance(record, dict) and record.get("fingerprint") == wanted
    return record if same and (folder / "frames" / f"{name}.csv").is_file() else None


def save_clip(folder: Path, pair: ClipPair, scores: ClipScores, made_by: str) -> dict[str, Any]:
    """Write ``frames/NAME.csv``, then ``clips/NAME.json``, so that the JSON implies the CSV; return the record."""
    columns = list({column: None for row in scores.rows for column in row})
    with atomic_path(folder / "frames" / f"{pair.name}.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["frame", *columns])
        writer.writeheader()
        for index, row in enumerate(scores.rows):
            writer.writerow({"frame": index} | {key: v for key, v in row.items() if not math.isnan(v)})
    record = {
        "clip": pair.name,
        "frames": len(scores.rows),
        "scores": finite(scores.means()),
        "unavailable": scores.unavailable,
        "inputs": {role: str(path) for role, path in pair.inputs().items()},
        "fingerprint": made_by,
    }
    write_json(folder / "clips" / f"{pair.name}.json", record)
    return record


def summarise(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over clips of each column, with its 95 % interval and the gap to the reference's own value.

    ``gap``: mean over clips of ``|score - reference's score|`` for columns that have a ``:ref`` counterpart.
    """
    records = list(records)
    columns = list({column: None for record in records for column in record["scores"]})
    table: dict[str, Any] = {}
    for column in columns:
        values = [r["scores"][column] for r in records if r["scores"].get(column) is not None]
        if not values:
            continue
        table[column] = {
            "mean": float(np.mean(values)),
            "interval": bootstrap_interval(values),
            "clips": len(values),
        }
        pairs = [(r["scores"].get(column), r["scores"].get(f"{column}:ref")) for r in records]
        gaps = [abs(own - ref) for own, ref in pairs if own is not None and ref is not None]
        if gaps:
            table[column]["gap"] = float(np.mean(gaps))
    unavailable = {name: reason for record in records for name, reason in record["unavailable"].items()}
    return {"clips": len(records), "scores": table, "unavailable": unavailable}


def bootstrap_interval(values: Iterable[float], seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the mean (Efron 1979) over resampled clips; None for fewer than two."""
    sample = np.asarray(list(values), dtype=np.float64)
    if len(sample) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(len(sample), size=(RESAMPLES, len(sample)))
    low, high = np.percentile(sample[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def scored_by(device: str) -> dict[str, Any]:
    """Return what a summary's scores were computed with: versions, the Git revision in a checkout, the device."""
    found = find_device(device)
    card = f" ({torch.cuda.get_device_name(found)})" if found.type == "cuda" else ""
    return {
        "ldm-video": __version__,
        "torch": torch.__version__,
        **git_revision(),
        "device": f"{found}{card}",
    }


def finite(scores: Scores) -> dict[str, float | None]:
    """Replace non-finite values, which JSON cannot express, with None."""
    return {column: value if math.isfinite(value) else None for column, value in scores.items()}


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
