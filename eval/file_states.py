"""Has a file changed? What is kept of an earlier run belongs to one state of the files that it was made from."""

from __future__ import annotations

from pathlib import Path


def file_states(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of every file below a folder, by name."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
