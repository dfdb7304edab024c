"""The only error that users see: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import NoReturn

# torch re-raises an error of a DataLoader worker with the worker's traceback as its message.
_FROM_WORKER = r"\ACaught \w+ in DataLoader worker process.*^"
_WORKERS_ERROR = re.compile(_FROM_WORKER + r"[\w.<>]+: ", re.DOTALL | re.MULTILINE)
_WORKERS_FILE = re.compile(_FROM_WORKER + r"\w+: \[Errno \d+\] (.*?): (['\"])(.*?)\2", re.DOTALL | re.MULTILINE)


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, which file or option, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(_WORKERS_ERROR.sub("", message).split()))


class ArgumentParser(argparse.ArgumentParser):
    """``argparse`` parser that raises its errors as ``UserError``: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run_cli(main: Callable[[], None]) -> None:
    """Run a script's ``main``: ``UserError`` prints one line to stderr and exits with code 2, Ctrl-C exits with 130.

    An ``OSError`` about a file is reported like bad input, wherever it was raised, including in a DataLoader worker.
    Any other error is a bug and propagates.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        file, reason = _refused_file(error)
        if file is None:
            raise
        print(f"error: {file}: {reason}; check that it can be read and written", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as end:
        if end.code != 1 or not isinstance(end.__context__, KeyboardInterrupt):
            raise
        _interrupted()  # Lightning turns Ctrl-C into exit code 1


def _refused_file(error: OSError) -> tuple[object, str | None]:
    """Return the file that the system refused and the reason; ``(None, None)`` if the error is not about a file."""
    if error.filename is not None:
        return error.filename, error.strerror
    found = _WORKERS_FILE.search(str(error))
    return (found[3], found[1]) if found else (None, None)


def _interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None
