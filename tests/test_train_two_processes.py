"""Two processes (gloo, DDP) train as one process with their joint batch does: same gradients, same weights."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from ldm_video.training.order import ClipOrder, clip_numbers
from tests.cli_support import ROOT, call, write_tiny_bundle
from tests.train_support import ENVIRONMENT, logged, stage_options, weights

TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
LAUNCHERS = {
    "codec": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"],
    "denoiser": [sys.executable],  # Lightning starts the second process
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(LAUNCHERS))
def test_two_processes_equal_one_with_the_joint_batch(
    stage: str, tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    """In double precision, where nothing but the order of sums can differ."""
    write_video(tmp_path / "clips" / "a.mp4", frames=6, size=(112, 128))
    options = stage_options(stage, tmp_path / "clips", write_tiny_bundle(tmp_path / "bundle"), steps=4)
    options += ["trainer.precision=64-true", "ema=0.5"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert call(train, *options, "data.batch=4", f"output={one}") == 0
    assert call(train, *options, "data.batch=2", f"output={tmp_path / 'half'}") == 0

    launcher = [*LAUNCHERS[stage], *([f"--master-port={free_port()}"] if len(LAUNCHERS[stage]) > 1 else [])]
    command = [*launcher, str(ROOT / "train.py"), *options, *TWO, "data.batch=2", f"output={two}"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    norms = [column for column in ("gradient/codec", "gradient/spatial", "gradient/temporal") if logged(one, column)]
    assert norms
    for column in norms:
        expected = logged(one, column)
        assert sorted(expected) == [0, 1, 2, 3]
        assert logged(two, column) == pytest.approx(expected, rel=1e-6)
        assert logged(tmp_path / "half", column)[0] != pytest.approx(expected[0], rel=1e-3)
    joint, parted = weights(one), weights(two)
    assert joint.keys() == parted.keys()
    for name, expected in joint.items():
        torch.testing.assert_close(
            parted[name], expected, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_processes_share_the_stream_out_without_gap_or_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(rank: int, world: int, first: int, count: int) -> list[int]:
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)
        assert list(ClipOrder(first + count, first)) == list(clip_numbers(first, count))
        return list(clip_numbers(first, count))

    # The third batch of 2: of three processes it is what one process with a batch of 6 takes.
    parts = [of(rank, 3, 4, 2) for rank in range(3)]
    assert sorted(number for part in parts for number in part) == of(0, 1, 12, 6) == list(range(12, 18))
