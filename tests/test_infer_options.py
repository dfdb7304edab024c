"""The options of ``infer.py``: help names them, each sets its key, and a wrong word is told at once."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

import infer
from ldm_video.pipeline.arguments import DEFAULTS, DEINTERLACE, parse_arguments
from ldm_video.pipeline.settings import read_config
from ldm_video.video_io.reader import Deinterlace
from tests.cli_support import ROOT, call

KEYS_WITH_AN_OPTION = (
    "model", "scale", "height", "prompt", "negative_prompt", "steps", "guidance", "seed", "window", "overlap", "tile",
    "deinterlace", "device", "dtype", "attention", "codec", "crf", "noise_level", "strength",
    "propagate", "fill", "lora", "prompt_file", "memory",
)  # fmt: skip


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(infer, "--help") == 0
    text = capsys.readouterr().out
    for option in KEYS_WITH_AN_OPTION:
        assert f"--{option.replace('_', '-')} " in text


HEAVY = ("torch", "diffusers", "transformers", "peft", "scipy", "numpy", "av", "cv2")
LOADED = f"""
import sys
sys.argv[0] = "infer.py"
try:
    import infer
    infer.run_cli(infer.main)
finally:
    print(sorted({{*sys.modules}} & {{*{HEAVY}}}))
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--turbo"], 2),
        (["--input", "none.mp4", "--output", "hd.mp4"], 2),
        (["--input", "infer.py", "--output", "hd.mp4", "segmnt=4"], 2),
        (["--input", "infer.py", "--output", "hd.mp4", "segment=0"], 2),
    ],
)
def test_help_and_wrong_words_wait_for_no_library(words: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_command_line_offers_what_the_reader_takes() -> None:
    assert get_args(Deinterlace) == DEINTERLACE


@pytest.mark.parametrize("key", KEYS_WITH_AN_OPTION)
def test_every_option_sets_its_key(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"deinterlace": "on", "propagate": "off", "fill": "model"}.get(key, "7")
    option = f"--{key.replace('_', '-')}"
    monkeypatch.setattr("sys.argv", ["infer.py", "--input", "sd.mp4", "--output", "hd.mp4", option, value])
    assert str(read_config(parse_arguments(), DEFAULTS)[key]) in (value, f"{value}.0")


def test_a_missing_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(infer, "--input", "a") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: the following arguments are required: --output; see --help"
