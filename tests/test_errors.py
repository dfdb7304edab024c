"""How a script ends: one line and a code, for people and for shells."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from ldm_video.core.errors import UserError, run_cli


def refused(path: Path) -> None:
    path.read_text()


def test_bad_input_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("no\n  such clip")

    with pytest.raises(SystemExit) as end:
        run_cli(main)
    assert (end.value.code, capsys.readouterr().err) == (2, "error: no such clip\n")


@pytest.mark.parametrize("name", ["nothing", "x" * 300])
def test_a_file_that_the_system_refuses_is_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: refused(tmp_path / name))
    line = capsys.readouterr().err
    assert end.value.code == 2 and line.startswith(f"error: {tmp_path / name}: ") and line.count("\n") == 1


class Refused(Dataset[int]):
    """Of which no item can be had."""

    def __init__(self, read: Callable[[], object]) -> None:
        self.read = read

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        self.read()
        return index


def undecodable() -> None:
    try:
        raise ValueError("a: b")
    except ValueError as error:
        raise UserError("clips/a.mp4: cannot be decoded; remove it") from error


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (undecodable, "error: clips/a.mp4: cannot be decoded; remove it"),
        (
            partial(open, "/no/such it's/file"),
            "error: /no/such it's/file: No such file or directory; check that it can be read and written",
        ),
    ],
)
def test_a_worker_that_loads_data_says_the_same_line(
    capsys: pytest.CaptureFixture[str], read: Callable[[], object], line: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: print(list(DataLoader(Refused(read), num_workers=1))))
    assert (end.value.code, capsys.readouterr().err) == (2, f"{line}\n")


def test_ctrl_c_is_130_where_lightning_makes_an_exit_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    with pytest.raises(SystemExit) as end:
        run_cli(main)
    assert (end.value.code, capsys.readouterr().err) == (130, "interrupted\n")
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: sys.exit(3))
    assert end.value.code == 3


def test_an_error_of_the_program_is_not_hidden() -> None:
    def main() -> None:
        raise OSError("of no file")

    with pytest.raises(OSError, match="of no file"):
        run_cli(main)
