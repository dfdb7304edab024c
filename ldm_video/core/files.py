"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm_video.core.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` with the same suffix; rename it on success, remove it on failure.

    The sibling may be written as a file or as a folder. An existing folder at ``path`` is replaced.
    Raises ``UserError`` when the place cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _explain(error: OSError, path: Path) -> OSError | UserError:
    if error.errno == errno.ENOSPC:
        return UserError(f"no space left on the disk of {path}; free some space or choose another output folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return UserError(f"cannot write {path} ({error.strerror}); choose a path that you may write")
    return error
