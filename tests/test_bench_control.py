"""The control network: zero latents, the shipped model's cost, and a decoder that the few-step stage trains."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from eval.bench import control
from ldm_video.config import build, load_config
from ldm_video.core.evidence import build_evidence
from ldm_video.diffusion.sampler import sample
from ldm_video.models.bundle import load_bundle
from ldm_video.pipeline.arguments import SHIPPED
from tests.cli_support import ROOT, call
from tests.model_support import randn


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control") / "pair"
    assert call(control, folder) == 0
    return folder


@torch.no_grad()
def test_latents_are_zero_from_any_noise(written: Path) -> None:
    model = load_bundle(written / "control")
    evidence = build_evidence(randn(1, 2, 3, 16, 16).clamp(-1, 1), torch.zeros(1, 2, 1, 64, 64))
    noise = randn(1, 2, 32, 8, 8, seed=1)
    latents = sample(lambda x, t: model.predict(x, t, evidence), model.scheduler, noise, 1)
    assert latents.abs().max() < 1e-6


def test_the_other_one_is_the_shipped_architecture_with_weights_of_its_own(written: Path) -> None:
    fresh, shipped = (load_bundle(folder) for folder in (written / "diffusion", SHIPPED))
    shipped.codec = shipped.codec.alone()  # without the restorer, of which nothing is trained
    own, theirs = fresh.state_dict(), shipped.state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in theirs.items()}
    assert torch.equal(own["codec.latent_std"], theirs["codec.latent_std"])
    assert not torch.equal(own["codec.decoder.enter8.weight"], theirs["codec.decoder.enter8.weight"])


def test_the_printed_commands_train_both_and_the_control_s_denoiser_stays_none(
    tmp_path: Path, write_video: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(control, tmp_path / "pair") == 0
    commands = [
        shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("python train.py")
    ]
    assert len(commands) == 2
    write_video(tmp_path / "clips" / "a.mp4", frames=6, size=(112, 128))
    small = ["data.size=64", "data.batch=1", "data.frames=2", f"data.cache={tmp_path / 'cache'}"]
    quick = ["task.pixel_loss.perceptual=null", "task.pixel_loss.adversary=null", "task.pixel_loss.lattice_weight=0"]
    once = ["trainer.max_steps=1", "trainer.accelerator=cpu", "logger=csv", "watch=null"]
    for name, command in zip(("control", "diffusion"), commands, strict=True):
        said = [word.replace("=VIDEOS", f"={tmp_path / 'clips'}") for word in command[2:]]
        said[said.index("--config") + 1] = str(ROOT / said[said.index("--config") + 1])
        assert call(train, *said, *small, *quick, *once, f"output={tmp_path / name}") == 0
    trained = load_bundle(tmp_path / "control" / "bundle")
    assert not any(parameter.any() for parameter in trained.denoiser.unet.conv_out.parameters())
    for name, command in zip(("control", "diffusion"), commands, strict=True):  # the one with its denoiser, always
        assert "task.decoder_share=0" in command
        assert load_bundle(tmp_path / name / "bundle").sampling.steps == 1


def test_it_costs_what_the_shipped_model_costs() -> None:
    config = load_config(control.SMALL)
    shipped, other = (control.operations(model) for model in (build(config), control.build_control(config)))
    assert abs(other / shipped - 1) < 0.05


def test_what_exists_is_not_replaced(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(control, written) == 2
    assert "exists; remove it" in capsys.readouterr().err
