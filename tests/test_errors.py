"""How a script ends: one line and a code, for people and for shells."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_an_error_of_the_program_is_not_hidden() -> None:
    def main() -> None:
        raise OSError("of no file")

    with pytest.raises(OSError, match="of no file"):
        run_cli(main)
