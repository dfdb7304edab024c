"""Read the results of ``eval.benchmark`` and ``eval.run`` from disk: tracks, methods, clips, per-frame scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.clips import ClipPair
from ldm_video.core.errors import UserError

GIVEN = "given folders"  # the track for output folders of eval.run
REFERENCE, INPUT = "reference", "input"  # shown next to the methods


@dataclass(frozen=True)
class ScoredClip:
    """One clip of one method: its files, and column -> score per frame (``t`` float64, NaN where there is none)."""

    pair: ClipPair
    frames: int
    scores: dict[str, np.ndarray]


@dataclass(frozen=True)
class ScoredMethod:
    """One method on one track: its ``summary.json`` and, if measured, ``seconds`` per frame and peak memory."""

    name: str
    summary: dict[str, Any]
    clips: dict[str, ScoredClip]
    seconds: float | None = None
    peak_bytes: float | None = None


@dataclass
class ScoredTrack:
    """All methods scored on the same inputs."""

    name: str
    methods: dict[str, ScoredMethod] = field(default_factory=dict)

    def clips(self) -> list[str]:
        """Return the names of all clips in order of first occurrence."""
        return list(dict.fromkeys(clip for method in self.methods.values() for clip in method.clips))

    def of_clip(self, clip: str) -> dict[str, ScoredClip]:
        """Return method -> its version of a clip, without the methods that have none."""
        return {name: method.clips[clip] for name, method in self.methods.items() if clip in method.clips}

    def add(self, method: ScoredMethod, folder: Path) -> None:
        """Add a method. The folder's name is appended to a duplicate name; a reserved name is marked as scored.

        Raises ``UserError`` if the name is still a duplicate.
        """
        name = f"{method.name} (scored)" if method.name in (REFERENCE, INPUT) else method.name
        name = name if name not in self.methods else f"{name} ({folder.name})"
        if name in self.methods:
            raise UserError(f"two folders hold a method named {name}; rename {folder}")
        self.methods[name] = replace(method, name=name)


def load_tracks(folders: Sequence[Path]) -> list[ScoredTrack]:
    """Load all tracks of the folders: benchmarks' (``results.json``), and eval.run's (``summary.json``) as one track.

    Raises ``UserError`` that names the file if a folder is neither, a file is damaged, a clip has no scores, a video is
    missing, or two methods' versions of a clip differ in length.
    """
    tracks: dict[str, ScoredTrack] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no such folder: {folder}")
        if (folder / "results.json").is_file():
            _add_benchmark(tracks, folder)
        elif (folder / "summary.json").is_file():
            track = tracks.setdefault(GIVEN, ScoredTrack(GIVEN))
            track.add(_load_method(folder.resolve().name, folder, folder), folder)
        else:
            raise UserError(
                f"{folder} holds neither results.json nor summary.json; give a folder that eval.benchmark "
                "or eval.run wrote"
            )
    for track in tracks.values():
        _check_lengths(track)
    scored_tracks = [track for track in tracks.values() if track.clips()]
    if not scored_tracks:
        raise UserError(f"no clip was scored in {', '.join(map(str, folders))}; run eval.benchmark or eval.run again")
    return scored_tracks


def _add_benchmark(tracks: dict[str, ScoredTrack], folder: Path) -> None:
    results = _read_json(folder / "results.json")
    for name, methods in results.items():
        if not isinstance(methods, dict):
            raise _damaged(folder / "results.json", f"track {name} has no methods")
        track = tracks.setdefault(name, ScoredTrack(name))
        for method, summary in methods.items():
            costs = summary if isinstance(summary, dict) else {}
            scored = _load_method(method, folder / "scores" / name / method, folder)
            scored = replace(scored, seconds=costs.get("seconds"), peak_bytes=costs.get("peak_bytes"))
            track.add(scored, folder)


def _load_method(name: str, scores: Path, root: Path) -> ScoredMethod:
    summary = _read_json(scores / "summary.json")
    table, unavailable = summary.get("scores"), summary.get("unavailable")
    if not (isinstance(table, dict) and isinstance(unavailable, dict) and all("mean" in s for s in table.values())):
        raise _damaged(scores / "summary.json", "no scores")
    names = summary.get("names")  # of the clips in the means; absent in folders of earlier versions
    clips = {
        path.stem: _load_clip(path, scores, root)
        for path in sorted((scores / "clips").glob("*.json"))
        if names is None or path.stem in names
    }
    if len(clips) < summary.get("clips", 0):
        raise UserError(f"{scores}/clips holds {len(clips)} of {summary['clips']} clips; score them again")
    return ScoredMethod(name, summary, clips)


def _load_clip(path: Path, scores: Path, root: Path) -> ScoredClip:
    record = _read_json(path)
    try:
        inputs = {role: _find(Path(file), root) for role, file in record["inputs"].items()}
        pair, frames = ClipPair(name=record["clip"], **inputs), int(record["frames"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"not a clip's record: {error}") from error
    return ScoredClip(pair, frames, _read_frames(scores / "frames" / f"{path.stem}.csv", frames))


def _find(recorded: Path, root: Path) -> Path:
    """Return the file below ``root`` if the folder was moved (or a relative path no longer resolves), else as recorded.

    A benchmark's own ``inputs`` and ``outputs`` take precedence, so that a copied folder shows its own files. Raises
    ``UserError`` if neither exists.
    """
    parts = recorded.parts
    below = [root.joinpath(*parts[start:]) for start, part in enumerate(parts) if part in ("inputs", "outputs")]
    for candidate in (*below, recorded):
        if candidate.exists():
            return candidate
    raise UserError(f"{recorded} is gone; put it back, or score again from where it is now")


def _read_frames(path: Path, frames: int) -> dict[str, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            head = next(rows, [])
            table = np.array([[float(cell or "nan") for cell in row] for row in rows], dtype=np.float64)  # t columns
    except (OSError, ValueError, csv.Error) as error:
        raise _damaged(path, str(error)) from error
    if head[:1] != ["frame"] or table.shape != (frames, len(head)):
        raise _damaged(path, f"expected {frames} rows of scores under a heading")
    return {column: table[:, index] for index, column in enumerate(head) if column != "frame"}


def _check_lengths(track: ScoredTrack) -> None:
    for clip in track.clips():
        lengths = {name: scored.frames for name, scored in track.of_clip(clip).items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {frames}" for name, frames in lengths.items())
            raise UserError(f"{track.name}: {clip} differs in frames ({counts}); compare methods on the same clips")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict) or not content:
        raise _damaged(path, "empty")
    return content


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"cannot read {path} ({why}); score again with eval.benchmark or eval.run")
