"""Locks of the file system, which vanish with their owner however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

HAS_LOCKS = find_spec("fcntl") is not None  # not on Windows: one process there, and no lock
if HAS_LOCKS:
    import fcntl

_open: set[TextIO] = set()


def _let_go() -> None:
    for file in _open:
        file.close()
    _open.clear()


# A fork's copy of an open file has the lock too and would keep it when its owner is killed; to close it frees nothing.
if HAS_LOCKS:
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock ``path`` against other processes; yields False when another one has it and ``wait`` is off.

    The operating system frees it when the process ends, by whatever means. Where a file system has no locks, every
    process is told that it has it: what they write is whole or absent in any case.
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
        _open.add(file)
        try:
            yield True
        finally:
            _open.discard(file)


@contextmanager
def first_to_make(path: Path) -> Iterator[bool]:
    """Yields whether this process is to make ``path``: the first that asks is, and the others wait until it is done.

    If it fails, it is the next one's turn. Raises ``OSError`` where the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock):
        try:
            yield not path.exists()
        finally:
            with suppress(OSError):  # who waits for it has it open; who comes later finds what was made
                lock.unlink()


def is_held(path: Path) -> bool:
    """Whether another process holds the lock ``path``."""
    if not path.exists():
        return False
    with locked(path, wait=False) as mine:
        return not mine


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Hold the lock ``path`` if its owner has ended; yields whether that is so.

    False, too, where the file system has no locks: nobody can tell there.
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
