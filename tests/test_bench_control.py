"""The control network: zero latents, the shipped model's cost, and a decoder that the few-step stage trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eval.bench import control
from ldm_video.config import build, load_config
from ldm_video.core.evidence import build_evidence
from ldm_video.diffusion.sampler import sample
from ldm_video.models.bundle import load_bundle
from tests.cli_support import call
from tests.model_support import randn


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control") / "bundle"
    assert call(control, folder) == 0
    return folder


@torch.no_grad()
def test_latents_are_zero_from_any_noise(written: Path) -> None:
    model = load_bundle(written)
    evidence = build_evidence(randn(1, 2, 3, 16, 16).clamp(-1, 1), torch.zeros(1, 2, 1, 64, 64))
    noise = randn(1, 2, 32, 8, 8, seed=1)
    latents = sample(lambda x, t: model.predict(x, t, evidence), model.scheduler, noise, 1)
    assert latents.abs().max() < 1e-6


def test_it_costs_what_the_shipped_model_costs() -> None:
    config = load_config(control.SMALL)
    shipped, other = (control.operations(model) for model in (build(config), control.build_control(config)))
    assert abs(other / shipped - 1) < 0.05


def test_what_exists_is_not_replaced(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(control, written) == 2
    assert "exists; remove it" in capsys.readouterr().err
