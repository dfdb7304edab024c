"""What libraries show while models are read and written: nothing, and what they showed before after that."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

import ldm_video.convert as convert
from ldm_video.models.quiet import quiet
from tests.cli_support import call, spawn
from tests.sd_checkpoints import write_pipeline

LIBRARIES = ("diffusers", "transformers")


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("sd") / "x4", "x4-upscaler")


def test_an_error_is_the_only_line(upscaler: Path, tiny_video: Path, tmp_path: Path) -> None:
    given = ("--input", tiny_video, "--output", tmp_path / "hd.mkv", "--device", "cpu", "--model", upscaler)
    run = spawn("infer.py", *given, "--noise-level", 999)
    assert run.returncode == 2
    assert run.stderr == "error: --noise-level 999 is outside 0 to 350, which the model was trained with\n"


def test_converting_says_nothing_on_stderr(upscaler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call(convert, "to-bundle", upscaler, tmp_path / "bundle") == 0
    assert call(convert, "to-diffusers", tmp_path / "bundle", tmp_path / "back") == 0
    assert capsys.readouterr().err == ""


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the libraries, whose level and bars, and the hub's, are put back after a test."""
    logger, bars = logging.getLogger(request.param), import_module(f"{request.param}.utils.logging")
    level, shown, hidden = logger.level, bars.is_progress_bar_enabled(), are_progress_bars_disabled()
    yield request.param
    logger.setLevel(level)
    (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
    (disable_progress_bars if hidden else enable_progress_bars)()


@pytest.mark.parametrize("hub_hides", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_what_was_shown_before_is_shown_after(library: str, shown: bool, hub_hides: bool) -> None:
    logger, bars = logging.getLogger(library), import_module(f"{library}.utils.logging")
    logger.setLevel(logging.INFO)
    (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
    (disable_progress_bars if hub_hides else enable_progress_bars)()
    with pytest.raises(OSError), quiet(library):
        assert logger.level == logging.CRITICAL and not bars.is_progress_bar_enabled()
        raise OSError
    assert logger.level == logging.INFO
    assert bars.is_progress_bar_enabled() == shown
    assert are_progress_bars_disabled() == hub_hides
