"""The result for each source: ``report.json``, for people to read and for an interrupted run to resume from."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.prepare_parts.options import PrepareOptions
from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path

NAME = "report.json"
_IGNORED_OPTIONS = {"jobs"}  # does not affect the result, so it may differ when a run resumes


class Report:
    """The report; ``sources`` maps a path relative to SRC to its ``clips`` and ``dropped`` pieces, or its ``error``.

    Raises ``UserError`` when ``out`` holds the report of a run with other options, or a report that cannot be parsed.
    """

    def __init__(self, out: Path, options: PrepareOptions, shards: bool) -> None:
        self.path = out / NAME
        chosen = {k: v for k, v in asdict(options).items() if k not in _IGNORED_OPTIONS} | {"shards": shards}
        self.options: dict[str, Any] = chosen
        self.sources: dict[str, dict[str, Any]] = {}
        if not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            earlier, self.sources = _checked(content["options"], content["sources"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path} is not a report of data.prepare; remove it or choose another OUT") from error
        if changed := [key for key in chosen if earlier.get(key) != chosen[key]]:
            key = changed[0]
            raise UserError(
                f"{out} was begun with {key}={earlier.get(key)}, not {chosen[key]}; use the same options or another OUT"
            )

    def done(self, name: str) -> bool:
        """Return whether a source needs no more work. A bad file is retried: it may have been replaced."""
        return name in self.sources and "error" not in self.sources[name]

    @property
    def clips(self) -> list[dict[str, Any]]:
        """The metadata of every clip, sorted by source."""
        return [clip for name in sorted(self.sources) for clip in self.sources[name].get("clips", ())]

    def totals(self) -> dict[str, Any]:
        """Return counts over all sources; dropped pieces are counted by the first word of their reason."""
        dropped = Counter(p["reason"].split()[0] for s in self.sources.values() for p in s.get("dropped", ()))
        return {
            "sources": len(self.sources),
            "bad_files": sorted(name for name, source in self.sources.items() if "error" in source),
            "clips": len(self.clips),
            "frames": sum(clip["stop"] - clip["start"] for clip in self.clips),
            "cropped": sum(bool(clip["cropped"]) for clip in self.clips),
            "dropped": dict(sorted(dropped.items())),
        }

    def save(self) -> None:
        """Write the report atomically."""
        content = {"options": self.options, "totals": self.totals(), "sources": self.sources}
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def summary(self) -> str:
        """Return a one-line summary, followed by a line for each bad file."""
        totals = self.totals()
        dropped = ", ".join(f"{count} {reason}" for reason, count in totals["dropped"].items()) or "none"
        lines = [
            f"{totals['clips']} clips, {totals['frames']} frames, from {totals['sources']} videos; "
            f"pieces dropped: {dropped}; bars cropped off {totals['cropped']}; see {self.path}"
        ]
        lines += [f"bad file {name}: {self.sources[name]['error']}" for name in totals["bad_files"]]
        return "\n".join(lines)


def _checked(options: Any, sources: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return both unchanged; raise a parsing error (``ValueError``, ``KeyError``, ``TypeError``, ``AttributeError``)
    unless they have the fields that :class:`Report` reads."""
    for source in sources.values():
        for clip in source.get("clips", ()):
            if not isinstance(clip["key"], str) or not clip["stop"] > clip["start"] >= 0 or "cropped" not in clip:
                raise ValueError("no facts of a clip")
        if any(not piece["reason"].split() for piece in source.get("dropped", ())):
            raise ValueError("no reason")
    if not isinstance(options, dict):
        raise TypeError("no options")
    return options, sources
