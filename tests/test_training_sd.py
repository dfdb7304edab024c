"""The cluster's configurations on small checkpoints in the published layouts: from the checkpoint to a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from ldm_video.diffusion.sampler import sampling_timesteps
from ldm_video.models.bundle import load_bundle
from ldm_video.models.open_model import open_model
from tests.cli_support import ROOT, call
from tests.sd_checkpoints import write_pipeline

CONFIGS = ROOT / "configs" / "train" / "sd"
KINDS = {"x4_upscaler": "x4-upscaler", "sd2_inpainting": "sd2-inpainting"}
HERE = [
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_steps=2", "trainer.log_every_n_steps=1",
    "trainer.accumulate_grad_batches=2", "checkpoint_every=2", "logger=csv", "watch=null", "ema=null",
    "data.workers=0", "data.frames=2", "data.size=64", "task.warmup=1", "task.spatial.start=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("data")
    clip = write_video(folder / "clips" / "a.mp4", frames=4, size=(112, 128))
    clip.with_suffix(".txt").write_text("the cat")
    return folder


@pytest.mark.parametrize("name", list(KINDS))
def test_a_published_checkpoint_is_trained_and_saved(name: str, clips: Path, tmp_path: Path) -> None:
    """In bfloat16 with DDP, accumulation and checkpointing, spatial layers from the second step, as the file says."""
    checkpoint = write_pipeline(tmp_path / "checkpoint", KINDS[name])
    data = [f"data.root={clips / 'clips'}", f"data.cache={clips / 'cache'}", f"init_from={checkpoint}"]
    assert call(train, "--config", CONFIGS / f"{name}.yaml", *HERE, *data, f"output={tmp_path / 'run'}") == 0
    before, after = open_model(checkpoint), load_bundle(tmp_path / "run" / "bundle")
    assert after.sees_canvas == before.sees_canvas
    assert after.sampling == replace(before.sampling, scale=4)  # as its clips were; the inpainting checkpoint's is 1
    assert (after.lowres_scheduler is None) == (before.lowres_scheduler is None)
    old, new = before.state_dict(), after.state_dict()
    changed = {key for key, value in new.items() if not torch.equal(value, old[key])}
    assert not [key for key in changed if not key.startswith("denoiser.")]  # codec and text are frozen
    parts = {"temporal": ".temporal.", "entrance": ".conv_in.", "spatial": ".to_q.", "label": "class_embedding"}
    seen = {part for part, mark in parts.items() if any(mark in key for key in changed)}
    assert seen == ({*parts} if name == "x4_upscaler" else {*parts} - {"label"})
    grown = new["denoiser.unet.conv_in.weight"][:, before.denoiser.unet.config.in_channels - 1]
    assert grown.any()  # the channel of known pixels, which no published checkpoint has, started at zero


def test_few_steps_with_an_adversary(clips: Path, tmp_path: Path) -> None:
    """Latents at the first step, pixels at the second."""
    checkpoint = write_pipeline(tmp_path / "checkpoint", "x4-upscaler")
    data = [f"data.root={clips / 'clips'}", f"data.cache={clips / 'cache'}", f"init_from={checkpoint}"]
    small = ["task.pixel_from_step=1", "task.pixel_loss.perceptual=null", "task.pixel_loss.adversary.channels=8"]
    run = tmp_path / "run"
    assert call(train, "--config", CONFIGS / "x4_few_step.yaml", *HERE, *data, *small, f"output={run}") == 0
    before, after = open_model(checkpoint), load_bundle(run / "bundle")
    assert (before.sampling.steps, before.sampling.guidance) == (75, 9.0)
    assert after.sampling == replace(before.sampling, steps=4, guidance=1.0)
    assert sampling_timesteps(after.scheduler, 4).tolist() == [999, 749, 499, 249]
    old, new = before.state_dict(), after.state_dict()
    changed = {key.split(".")[0] for key, value in new.items() if not torch.equal(value, old[key])}
    encoder = {key for key in new if ".encoder." in key or ".quant_conv." in key}
    assert changed == {"denoiser", "codec"}
    assert all(torch.equal(new[key], old[key]) for key in encoder)
    logged = [path.read_text().splitlines()[0] for path in run.rglob("metrics.csv")]
    assert all(f"train/{term}" in logged[0] for term in ("latent", "l1", "motion", "adversary", "discriminator"))


def test_dry_run_of_a_published_checkpoint(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_pipeline(tmp_path / "checkpoint", "x4-upscaler")
    data = [f"data.root={clips / 'clips'}", f"init_from={checkpoint}"]
    arguments = ["--config", CONFIGS / "x4_upscaler.yaml", *HERE, *data, f"output={tmp_path / 'run'}", "--dry-run"]
    assert call(train, *arguments) == 0
    printed = capsys.readouterr().out
    text = next(line for line in printed.splitlines() if line.startswith("text: "))
    assert ", 0.00M trained" in text
    assert "noise_level" in printed and "memory: about" in printed and "h for 2 steps" in printed
    assert not (tmp_path / "run").exists()
