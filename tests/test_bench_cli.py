"""Benchmarks from the command line: a device or an option that cannot be is one line."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from eval.bench import inference, propagation, train_throughput
from ldm_video.core.errors import run_cli


@pytest.mark.parametrize(
    ("bench", "arguments", "message"),
    [
        (inference, ("--device", "foo"), "unknown device 'foo'"),
        (train_throughput, ("--device", "foo"), "unknown device 'foo'"),
        (propagation, (), "--root"),
    ],
)
def test_a_bad_command_is_one_line(
    bench: ModuleType,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [bench.__name__, *arguments])
    with pytest.raises(SystemExit) as end:
        run_cli(bench.main)
    error = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert len(error) == 1 and message in error[0]
