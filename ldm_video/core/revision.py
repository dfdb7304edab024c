"""Git revision of this code."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


def git_revision(folder: Path = PACKAGE) -> dict[str, Any]:
    """Return ``{"revision": HEAD, "dirty": whether tracked files differ from it}`` of this code's own checkout.

    Empty without git and for an installed package, even one installed inside another repository.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {}
