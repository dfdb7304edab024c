"""Atomic file writes: a file or folder is either complete or absent."""

from __future__ import annotations

import errno
import hashlib
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
"""Errno values that mean that the disk, the quota or the file size limit is exhausted."""

# Errno values that mean that this path cannot be written.
_UNWRITABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


# Lock of the temporary name of `stem` + `suffix`.
_LOCK = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{8}\.part(?P<suffix>.*)\.lock", re.DOTALL)

# Listing a folder takes longer the more it holds: with many files written one after another, listing would soon take
# most of the time. A listing is reused for this many times as long as it took.
_LISTING_REUSE = 10
_listings: dict[str, tuple[float, set[tuple[str, str]]]] = {}  # folder -> expiry time, result of `_pending_in`

_umask = os.umask(0)  # can only be read by setting it; done at import, before there are threads
os.umask(_umask)
_DEFAULT_MODE = 0o666 & ~_umask  # permissions of a new file


class Taken(UserError):
    """The output path already exists and must not be replaced."""


@contextmanager
def atomic_path(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` with the same suffix; rename it on success, remove it on failure.

    The sibling may be written as a file or as a folder. Whatever exists at ``path``, even a folder, is replaced. The
    data is synced to disk before the rename, so that a power cut cannot leave an empty file. Files get the permissions
    that the umask allows, however they were created (safetensors makes its own readable by the owner only). Leftovers
    of killed processes for the same path are removed first, if the last listing of the folder showed any.

    With ``replace=False``, raise ``Taken`` if something has appeared at ``path`` and leave it in place; an empty folder
    counts as nothing. Of two processes, only the first succeeds: the name is given by a hard link, which fails if the
    name exists. On file systems without links, existence is checked just before the rename.

    Raises ``UserError`` if the path cannot be written or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pending, name = _pending_in(path.parent), (path.stem, path.suffix)
        if name in pending:
            pending.discard(name)
            sweep(path.parent, path)
        with _locked_temporary(path) as temporary:
            yield temporary
            _flush(temporary)
            if replace or not _rename_new(temporary, path):
                _replace(temporary, path)
            _fsync(path.parent)  # the directory entry
    except OSError as error:
        raise _explain(error, path) from error


def check_free(path: Path) -> None:
    """Raise ``Taken`` if ``path`` exists; an empty folder counts as nothing."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise Taken(f"{path} was put there while this was at work; pass --overwrite or choose another output")


def sweep(folder: Path, path: Path | None = None) -> None:
    """Remove the leftovers of killed processes in ``folder``: those of ``path``, or all.

    Files that a live process is writing are kept; on file systems without locks, everything is kept.
    """
    for lock in list(folder.iterdir()) if folder.is_dir() else ():
        found = _LOCK.fullmatch(lock.name)
        if found is None or (path is not None and (found["stem"], found["suffix"]) != (path.stem, path.suffix)):
            continue
        with abandoned(lock) as mine:
            if mine:
                temporary, target = lock.with_suffix(""), folder / (found["stem"] + found["suffix"])
                if _backup(temporary).exists() and not target.exists():  # killed between the two renames in `_swap`
                    os.replace(_backup(temporary), target)
                _remove(temporary, _backup(temporary), lock)


def _pending_in(folder: Path) -> set[tuple[str, str]]:
    """Return stem and suffix of each write in ``folder`` that is in progress or was killed, as of the last listing."""
    key, now = os.path.abspath(folder), time.monotonic()
    until, pending = _listings.get(key, (now, set[tuple[str, str]]()))
    if now >= until:
        found = (_LOCK.fullmatch(name) for name in os.listdir(folder))
        pending = {(lock["stem"], lock["suffix"]) for lock in found if lock is not None}
        done = time.monotonic()
        _listings[key] = (done + _LISTING_REUSE * (done - now), pending)
    return pending


def hash_files(path: Path) -> str:
    """Hash the contents of a file, or the names and contents of all files below a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


@contextmanager
def _locked_temporary(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, holding a lock file beside it meanwhile."""
    while True:
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
        lock = temporary.with_name(f"{temporary.name}.lock")
        try:
            lock.touch()
        except FileNotFoundError as error:  # the folder exists but takes no files, e.g. /proc
            raise _not_writable(error, path) from error
        with locked(lock):
            if not lock.exists():  # swept between its creation and its locking
                continue
            try:
                yield temporary
            finally:
                _remove(temporary, lock)
            return


def _remove(*paths: Path) -> None:
    for path in paths:
        if os.path.isdir(path) and not os.path.islink(path):  # unlike Path.is_dir, never raises
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # never created, and cannot exist here; the first error says why
                path.unlink()


def _flush(path: Path) -> None:
    """Give a file, or a folder and its contents, the default permissions and sync them to disk."""
    for entry in path.iterdir() if path.is_dir() else ():
        if not entry.is_symlink():
            _flush(entry)
    if path.is_file():
        rights = path.stat().st_mode & 0o777
        if rights | _DEFAULT_MODE != rights:
            path.chmod(rights | _DEFAULT_MODE)
    _fsync(path)


def _fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt":  # can only flush files open for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_new(fresh: Path, path: Path) -> bool:
    """Rename ``fresh`` to ``path`` atomically, replacing nothing. False if the file system has no such operation."""
    try:
        if fresh.is_dir():
            os.rename(fresh, path)  # a folder can only replace an empty folder
        else:
            os.link(fresh, path)  # the temporary name is removed together with the lock
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
    """Replace the folder ``path`` by the folder ``fresh`` with two renames.

    Deleting it in place would expose a half-deleted folder.
    """
    os.replace(path, _backup(fresh))
    os.replace(fresh, path)
    _remove(_backup(fresh))


def _backup(temporary: Path) -> Path:
    """Where the folder that ``temporary`` replaces is kept until the swap is done."""
    return temporary.with_name(f"{temporary.name}.old")


def _explain(error: OSError, path: Path) -> OSError | UserError:
    if error.errno in DISK_FULL:
        return UserError(f"no space left on the disk of {path}; free some space or choose another output folder")
    return _not_writable(error, path) if error.errno in _UNWRITABLE else error


def _not_writable(error: OSError, path: Path) -> UserError:
    return UserError(f"cannot write {path} ({error.strerror}); choose a path that you may write")
