"""The one error a user may see: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, which file or option, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose complaints are ``UserError``s: one line, not the usage above it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run_cli(main: Callable[[], None]) -> None:
    """Run a script's ``main``: a ``UserError`` is one line on stderr and exit code 2, Ctrl-C is 130.

    So is a file that the system refuses, whoever asked for it; any other error is a fault of the program.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; see that it can be read or written", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
