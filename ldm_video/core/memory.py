"""Peak main memory of this process."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

_HAS_USAGE = find_spec("resource") is not None  # not on Windows
if _HAS_USAGE:
    import resource

_STATUS = Path("/proc/self/status")
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of ``ru_maxrss``."""


def peak_resident() -> int:
    """Return the peak resident bytes of this process; 0 on Windows, where they are not available.

    On Linux ``VmHWM`` is preferred: it starts with the program, while ``ru_maxrss`` includes the parent's peak.
    """
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    if not _HAS_USAGE:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
