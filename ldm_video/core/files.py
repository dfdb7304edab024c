"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_video.core.errors import UserError
from ldm_video.core.locks import abandoned, locked

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


# Of the temporary name of stem + suffix.
_LOCK = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{8}\.part(?P<suffix>.*)\.lock", re.DOTALL)

# To look through a folder takes the longer the more is in it: one that gets many files, one after the other, would soon
# be looked through most of the time. After a look it is left alone for as many times as long as the look took.
_REST = 10
_looked: dict[str, tuple[float, set[tuple[str, str]]]] = {}  # folder -> until when, and what `_left_in` gives

_umask = os.umask(0)  # can only be read by being set; at import, before there are threads
os.umask(_umask)
_USUAL = 0o666 & ~_umask  # rights of a new file


class Taken(UserError):
    """Something has an output's name already, and is not to be replaced."""


@contextmanager
def atomic_path(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` with the same suffix; rename it on success, remove it on failure.

    The sibling may be written as a file or as a folder. What exists at ``path`` is replaced, a folder too. What was
    written is on the disk before it gets its name, so that a power cut leaves no empty file under it. Files may be read
    by whom the umask allows, however they were made: safetensors makes its own for their owner alone. What killed
    processes left of the same path is removed first, as far as it was seen when the folder was last looked through.

    Without ``replace``, ``Taken`` is raised for what has come to be at ``path``, and it stays; an empty folder is
    nothing. Of two processes one is first: the name is given by a link, which fails where there is one. Where the file
    system has no links, a look at the name comes before.

    Raises ``UserError`` when the place cannot be written or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        left, name = _left_in(path.parent), (path.stem, path.suffix)
        if name in left:
            left.discard(name)
            sweep(path.parent, path)
        with _claimed(path) as temporary:
            yield temporary
            _finish(temporary)
            if replace or not _place(temporary, path):
                _replace(temporary, path)
            _sync(path.parent)  # the name itself
    except OSError as error:
        raise _explain(error, path) from error


def check_free(path: Path) -> None:
    """``Taken`` for what has come to be at ``path``; an empty folder is nothing."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise Taken(f"{path} was put there while this was at work; pass --overwrite or choose another output")


def sweep(folder: Path, path: Path | None = None) -> None:
    """Remove what killed processes left in ``folder``: of ``path``, or of every file and folder.

    What a live process is writing stays, and so does everything where the file system has no locks.
    """
    for lock in list(folder.iterdir()) if folder.is_dir() else ():
        found = _LOCK.fullmatch(lock.name)
        if found is None or (path is not None and (found["stem"], found["suffix"]) != (path.stem, path.suffix)):
            continue
        with abandoned(lock) as mine:
            if mine:
                temporary, target = lock.with_suffix(""), folder / (found["stem"] + found["suffix"])
                if _old(temporary).exists() and not target.exists():  # killed between the two renames of `_swap`
                    os.replace(_old(temporary), target)
                _remove(temporary, _old(temporary), lock)


def _left_in(folder: Path) -> set[tuple[str, str]]:
    """Stem and suffix of what is being written in ``folder``, or was when its process was killed, a moment ago."""
    key, now = os.path.abspath(folder), time.monotonic()
    until, left = _looked.get(key, (now, set[tuple[str, str]]()))
    if now >= until:
        found = (_LOCK.fullmatch(name) for name in os.listdir(folder))
        left = {(lock["stem"], lock["suffix"]) for lock in found if lock is not None}
        done = time.monotonic()
        _looked[key] = (done + _REST * (done - now), left)
    return left


@contextmanager
def _claimed(path: Path) -> Iterator[Path]:
    """A name beside ``path``, and a lock beside the name for as long as this process is at work on it."""
    while True:
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
        lock = temporary.with_name(f"{temporary.name}.lock")
        try:
            lock.touch()
        except FileNotFoundError as error:  # the folder is there, but takes no files: /proc
            raise _no_place(error, path) from error
        with locked(lock):
            if not lock.exists():  # swept between its making and its locking
                continue
            try:
                yield temporary
            finally:
                _remove(temporary, lock)
            return


def _remove(*paths: Path) -> None:
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):  # unlike Path.is_dir, it never raises
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # it was never made, and its place cannot hold it; the first error says why
                path.unlink()


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


def _place(fresh: Path, path: Path) -> bool:
    """Give ``fresh`` the name ``path`` in one step that replaces nothing. False where there is no such step."""
    try:
        if fresh.is_dir():
            os.rename(fresh, path)  # a folder takes the place of an empty folder at most
        else:
            os.link(fresh, path)  # the other name goes with the lock
        return True
    except OSError:
        check_free(path)
        return False


def _replace(fresh: Path, path: Path) -> None:
    if fresh.is_dir() and path.is_dir():
        _swap(fresh, path)
    else:
        os.replace(fresh, path)


def _swap(fresh: Path, path: Path) -> None:
    """Put the folder ``fresh`` in the place of the folder ``path``: deleted in place, it would be seen half gone."""
    os.replace(path, _old(fresh))
    os.replace(fresh, path)
    _remove(_old(fresh))


def _old(temporary: Path) -> Path:
    """Where the folder is that ``temporary`` takes the place of."""
    return temporary.with_name(f"{temporary.name}.old")


def _explain(error: OSError, path: Path) -> OSError | UserError:
    if error.errno in DISK_FULL:
        return UserError(f"no space left on the disk of {path}; free some space or choose another output folder")
    return _no_place(error, path) if error.errno in _PLACE else error


def _no_place(error: OSError, path: Path) -> UserError:
    return UserError(f"cannot write {path} ({error.strerror}); choose a path that you may write")
