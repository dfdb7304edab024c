"""The one error a user may see: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import NoReturn

# torch raises an error of a DataLoader worker once more, with the worker's traceback for a message.
_FROM_WORKER = r"\ACaught \w+ in DataLoader worker process.*^"
_WORKERS_ERROR = re.compile(_FROM_WORKER + r"[\w.<>]+: ", re.DOTALL | re.MULTILINE)
_WORKERS_FILE = re.compile(_FROM_WORKER + r"\w+: \[Errno \d+\] (.*?): (['\"])(.*?)\2", re.DOTALL | re.MULTILINE)


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, which file or option, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(_WORKERS_ERROR.sub("", message).split()))


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose complaints are ``UserError``s: one line, not the usage above it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run_cli(main: Callable[[], None]) -> None:
    """Run a script's ``main``: a ``UserError`` is one line on stderr and exit code 2, Ctrl-C is 130.

    A file that the system refuses ends as bad input does, whoever asked for it, a DataLoader worker too; any other
    error is a fault of the program.
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
        print(f"error: {file}: {reason}; see that it can be read or written", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as end:
        if end.code != 1 or not isinstance(end.__context__, KeyboardInterrupt):
            raise
        _interrupted()  # Lightning makes an exit with code 1 of it


def _refused_file(error: OSError) -> tuple[object, str | None]:
    """The file that the system refused and the reason; ``(None, None)`` for an error of no file."""
    if error.filename is not None:
        return error.filename, error.strerror
    found = _WORKERS_FILE.search(str(error))
    return (found[3], found[1]) if found else (None, None)


def _interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None
