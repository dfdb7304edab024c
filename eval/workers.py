"""Processes that work for another one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

_THREADS = Path("/proc/self/task")  # man 5 proc: in each its `children`; elsewhere than on Linux there is none


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however it did, not when its work is done.

    What it has started itself, as ``infer.py`` for a table's row, is told to end as well (on Linux).
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        for child in _children():
            with suppress(OSError):  # it has ended meanwhile
                os.kill(child, signal.SIGTERM)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _children() -> list[int]:
    """Process numbers."""
    found: list[int] = []
    for children in _THREADS.glob("*/children"):
        with suppress(OSError):  # a thread that has ended meanwhile
            found += map(int, children.read_text().split())
    return found
