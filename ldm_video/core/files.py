"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_video.core.errors import UserError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The operating system's errors that say: no more."""

# Those that say: not here.
_PLACE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


_umask = os.umask(0)  # can only be read by being set; at import, before there are threads
os.umask(_umask)
_USUAL = 0o666 & ~_umask  # rights of a new file


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` with the same suffix; rename it on success, remove it on failure.

    The sibling may be written as a file or as a folder. An existing folder at ``path`` is replaced. What was written
    is on the disk before it gets its name, so that a power cut leaves no empty file under it. Files may be read by
    whom the umask allows, however they were made: safetensors makes its own for their owner alone.
    Raises ``UserError`` when the place cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _finish(temporary)
        if temporary.is_dir() and path.is_dir():
            _swap(temporary, path)
        else:
            os.replace(temporary, path)
        _sync(path.parent)  # the name itself
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        if os.path.isdir(temporary):  # unlike Path.is_dir, it never raises
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # it was never made, and its place cannot hold it; the first error says why
                temporary.unlink()


def _finish(path: Path) -> None:
    """Of a file, or of a folder and all that is in it: usual rights, and wait until it is written to the disk."""
    for entry in path.iterdir() if path.is_dir() else ():
        if not entry.is_symlink():
            _finish(entry)
    if path.is_file():
        rights = path.stat().st_mode & 0o777
        if rights | _USUAL != rights:
            path.chmod(rights | _USUAL)
    _sync(path)


def _sync(path: Path) -> None:
    """The same for a file, or for the names in a folder."""
    if os.name == "nt":  # flushes nothing that is not open for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(fresh: Path, path: Path) -> None:
    """Put the folder ``fresh`` in the place of the folder ``path``: deleted in place, it would be seen half gone."""
    old = fresh.with_suffix(".old")
    os.replace(path, old)
    os.replace(fresh, path)
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def _explain(error: OSError, path: Path) -> OSError | UserError:
    if error.errno in DISK_FULL:
        return UserError(f"no space left on the disk of {path}; free some space or choose another output folder")
    if error.errno in _PLACE:
        return UserError(f"cannot write {path} ({error.strerror}); choose a path that you may write")
    return error
