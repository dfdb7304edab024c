"""Names of the files written beside an output."""

from __future__ import annotations

import os
from pathlib import Path


def follow_link(output: Path) -> Path:
    """Resolve ``output`` if it is a symbolic link: temporary files belong on that disk, and the link stays.

    A link to a file with another suffix is not followed but replaced, as the suffix decides what is written.
    """
    if not output.is_symlink():
        return output
    target = Path(os.path.realpath(output))  # unlike Path.resolve, accepts a link to itself
    return target if target.is_dir() or target.suffix.lower() == output.suffix.lower() else output


def compare_path(output: Path) -> Path:
    """``hd.mp4 -> hd_compare.mp4``; for a folder of frames, ``hd -> hd_compare``."""
    return _beside_folder(output, "compare") or output.with_name(f"{output.stem}_compare{output.suffix}")


def preview_path(output: Path) -> Path:
    """``hd.mp4 -> hd.preview.mp4``; for a folder of frames, ``hd -> hd_preview``."""
    return _beside_folder(output, "preview") or output.with_name(f"{output.stem}.preview{output.suffix}")


def _beside_folder(output: Path, name: str) -> Path | None:
    """Return a folder beside a folder of frames, ``hd.v2 -> hd_v2_compare``; None if ``output`` is a file.

    Dots are replaced because a name with a dot that does not exist yet is taken for a file.
    """
    if output.suffix and not output.is_dir():
        return None
    return output.with_name(f"{output.name[0]}{output.name[1:].replace('.', '_')}_{name}")
