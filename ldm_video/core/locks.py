"""File system locks, which the operating system releases however their owner ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

HAS_LOCKS = find_spec("fcntl") is not None  # not on Windows, where locks are no-ops and only one process is supported
if HAS_LOCKS:
    import fcntl

_held: set[TextIO] = set()


def _close_inherited() -> None:
    for file in _held:
        file.close()
    _held.clear()


# A forked child inherits the open file and with it the lock, and would keep it after its owner is killed. Closing the
# child's copy does not release the owner's lock.
if HAS_LOCKS:
    os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock ``path`` against other processes. Yields False if another one holds it and ``wait`` is off.

    The operating system releases the lock when the process ends, however it ends. On file systems without locks every
    process gets True: their writes are atomic anyway.
    """
    with path.open("a") as file:
        if not HAS_LOCKS:
            yield True
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        _held.add(file)
        try:
            yield True
        finally:
            _held.discard(file)


@contextmanager
def first_to_make(path: Path) -> Iterator[bool]:
    """Yield whether this process should make ``path``: the first to ask should, the others wait until it is done.

    If it fails, the next one takes over. Raises ``OSError`` if the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock):
        try:
            yield not path.exists()
        finally:
            with suppress(OSError):  # waiting processes have it open; later ones find `path`
                lock.unlink()


def is_held(path: Path) -> bool:
    """Return whether another process holds the lock ``path``."""
    if not path.exists():
        return False
    with locked(path, wait=False) as mine:
        return not mine


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Hold the lock ``path`` if its owner has ended; yield whether that is so.

    Also yields False on file systems without locks, where it cannot be known.
    """
    if not HAS_LOCKS:
        yield False
        return
    try:
        file = path.open("r+")
    except FileNotFoundError:  # another process has just removed it
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
