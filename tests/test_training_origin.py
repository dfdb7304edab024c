"""A stage whose predecessor was trained anew since it began."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from ldm_video.training.same_run import ORIGIN
from tests.cli_support import call
from tests.train_support import stage_options, weights


def train_anew(bundle: Path) -> None:
    """Another predecessor of the same name: its decoder's weights are others."""
    path = bundle / "codec" / "model.safetensors"
    save_file({name: value * 1.5 for name, value in load_file(path).items()}, path)


def test_a_predecessor_that_has_changed_is_refused_until_a_restart(
    tmp_path: Path, bundle: Path, write_video: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "clips" / "a.mp4", frames=4, size=(112, 128))
    codec, run = tmp_path / "codec", tmp_path / "run"
    shutil.copytree(bundle, codec)
    options = [*stage_options("denoiser", tmp_path / "clips", codec, steps=1), f"output={run}"]
    assert call(train, *options) == 0
    last = run / "checkpoints" / "last.ckpt"
    assert call(train, *options, "trainer.max_steps=2") == 0  # nothing has changed
    before = last.read_bytes()
    train_anew(codec)
    for more in (["--dry-run"], []):
        assert call(train, *options, "trainer.max_steps=3", *more) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"error: init_from={codec} has changed since this run began; pass --restart or choose another" in line
    assert last.read_bytes() == before

    state = torch.load(last, weights_only=False)
    del state[ORIGIN]  # as an old one
    torch.save(state, last)
    assert call(train, *options, "trainer.max_steps=3") == 0
    assert torch.load(last, weights_only=False)[ORIGIN]

    train_anew(codec)
    assert call(train, *options, "--restart") == 0
    trained, new = weights(run), load_file(codec / "codec" / "model.safetensors")
    assert all(torch.equal(trained[f"codec.{name}"], value) for name, value in new.items())
