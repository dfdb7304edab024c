"""What the tests of LoRA share: small checkpoints, two finished runs, and the denoiser without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

import train
from ldm_video.models.inflate import VideoUNet
from tests.cli_support import ROOT, call
from tests.once_support import once
from tests.sd_checkpoints import TEXT_WIDTH, write_pipeline

X4 = ROOT / "configs" / "train" / "sd" / "x4_upscaler.yaml"
HERE = [
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=1",
    "checkpoint_every=1", "logger=csv", "watch=null", "data.workers=0", "data.frames=2", "data.size=64",
    "task.warmup=2", "optimizer.lr=0.01", "ema=0.5", "lora.rank=2",
]  # fmt: skip
ALL = ["lora.full=[temporal,conv_in]", "trainer.precision=32-true"]


def run_denoiser(denoiser: VideoUNet) -> Tensor:
    """What it makes of one noisy clip of two frames."""
    generator = torch.Generator().manual_seed(0)
    config = denoiser.unet.config
    noisy = torch.randn(1, 2, config["in_channels"], 8, 16, generator=generator)
    text = torch.randn(1, 5, TEXT_WIDTH, generator=generator)
    with torch.no_grad():
        return denoiser(noisy, 500, text, None if config["num_class_embeds"] is None else torch.tensor([20]))


def plain_unet(base: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(base / "unet")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@once
def write_checkpoints(factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Made once, for all to read."""
    folder = factory.mktemp("checkpoints")
    return {kind: write_pipeline(folder / kind, kind) for kind in ("x4-upscaler", "sd15")}


@once
def write_data(factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> list[str]:
    """One clip, and the options that name it."""
    folder = factory.mktemp("data")
    write_video(folder / "clips" / "a.mp4", frames=4, size=(112, 128))
    return [f"data.root={folder / 'clips'}", f"data.cache={folder / 'cache'}"]


@once
def finish_runs(factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> dict[str, Path]:
    """Two runs of train.py, made once: with adapters alone, and with new layers beside them."""
    folder, base = factory.mktemp("runs"), f"init_from={write_checkpoints(factory)['x4-upscaler']}"
    data = write_data(factory, write_video)
    for name, more in {"adapters": [f"publish={folder / 'published'}"], "all": ALL}.items():
        arguments = ["--config", X4, *HERE, *data, base, *more, "trainer.max_steps=3", f"output={folder / name}"]
        assert call(train, *arguments) == 0
    return {name: folder / name for name in ("adapters", "all", "published")}
