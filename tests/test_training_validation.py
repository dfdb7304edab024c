"""A stop between a checkpoint and the validation that follows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from ldm_video.core.errors import UserError
from ldm_video.training.checkpoints import AtomicCheckpointIO
from tests.cli_support import call
from tests.train_support import differing, logged, stage_options, weights

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, bundle: Path, write_video: Callable[..., Path]) -> list[str]:
    """A denoiser that gathers two batches a step, averages, and saves and validates after steps 2 and 4."""
    clips = tmp_path_factory.mktemp("data") / "clips"
    write_video(clips / "a.mp4", frames=4, size=(112, 128))
    held_out = (
        f"{{target: data.clips.ClipDataset, root: {clips}, frames: 2, size: 64, scale: 4, degrade: sd, average: 0, "
        "seed: 1, length: 2, cache: null}"
    )
    more = [f"+data.val={held_out}", "trainer.val_check_interval=2", "+trainer.accumulate_grad_batches=2"]
    return [*stage_options("denoiser", clips, bundle, steps=4), *more]


@pytest.fixture(scope="module")
def straight(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stops."""
    folder = tmp_path_factory.mktemp("straight")
    assert call(train, *options, f"output={folder}") == 0
    return folder


@pytest.mark.parametrize("stop", [2, 4])
def test_a_validation_that_a_stop_came_before_is_made_up_for(
    options: list[str], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """After step 4 nothing else is left to do."""
    run = [*options, f"output={tmp_path}"]
    save = AtomicCheckpointIO.save_checkpoint

    def stops(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: str | Path, **rest: Any) -> None:
        save(self, checkpoint, path, **rest)
        if Path(path).name == "last.ckpt" and checkpoint["global_step"] == stop:
            raise UserError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", stops)
        assert call(train, *run) == 2
    assert len(logged(tmp_path, "val/loss")) == stop // 2 - 1
    assert call(train, *run) == 0
    assert len(logged(straight, "val/loss")) == 2
    assert logged(tmp_path, "val/loss") == logged(straight, "val/loss")
    assert differing(weights(tmp_path), weights(straight)) == []


def test_a_step_is_validated_once(options: list[str], straight: Path) -> None:
    before = sorted((straight / "log").glob("version_*/metrics.csv"))
    assert call(train, *options, f"output={straight}", "trainer.max_steps=5") == 0
    (new,) = set((straight / "log").glob("version_*/metrics.csv")) - {*before}
    assert "val/loss" not in new.read_text()
