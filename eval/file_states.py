"""Change detection: cached results are valid for one state of the files that they were made from."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def file_states(path: Path) -> list[tuple[str, int, int]]:
    """Return path, size in bytes and mtime in ns of a file, or of every file below a folder, sorted by path."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@cache
def code_digest(root: Path, *patterns: str) -> str:
    """Return a digest of the names and contents of files below ``root``, cached per process.

    It does not depend on modification times. ``patterns``: as for ``Path.glob``.
    """
    digest = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in root.glob(pattern)}):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]
