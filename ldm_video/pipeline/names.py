"""What is written beside an output, by its name."""

from __future__ import annotations

import os
from pathlib import Path


def follow_link(output: Path) -> Path:
    """Where ``output`` leads, if it is a link: what is made on the way belongs on that disk, and the link stays.

    A link to a name that ends otherwise is not followed, as the ending decides what is written: it is replaced.
    """
    if not output.is_symlink():
        return output
    target = Path(os.path.realpath(output))  # unlike Path.resolve, it takes a link to itself for what it is
    return target if target.is_dir() or target.suffix.lower() == output.suffix.lower() else output


def compare_path(output: Path) -> Path:
    """``hd.mp4 -> hd_compare.mp4``; of a folder of frames, ``hd -> hd_compare``."""
    return _beside_folder(output, "compare") or output.with_name(f"{output.stem}_compare{output.suffix}")


def preview_path(output: Path) -> Path:
    """``hd.mp4 -> hd.preview.mp4``; of a folder of frames, ``hd -> hd_preview``."""
    return _beside_folder(output, "preview") or output.with_name(f"{output.stem}.preview{output.suffix}")


def _beside_folder(output: Path, name: str) -> Path | None:
    """A folder beside a folder of frames: ``hd.v2 -> hd_v2_compare``, as a name with a dot that is not there yet is a
    file's. None where ``output`` is a file."""
    if output.suffix and not output.is_dir():
        return None
    return output.with_name(f"{output.name[0]}{output.name[1:].replace('.', '_')}_{name}")
