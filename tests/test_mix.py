"""The mean of two trained models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm_video import convert
from ldm_video.models.bundle import load_bundle, save_bundle
from tests.cli_support import ROOT, call, tiny_model
from tests.model_support import perturb


def test_weights_are_mixed_in_the_given_shares(tmp_path: Path) -> None:
    one, two = tiny_model(), tiny_model()
    perturb(two, 0.1)
    two.codec.latent_std *= 3
    save_bundle(one, tmp_path / "one")
    save_bundle(two, tmp_path / "two")
    assert call(convert, "mix", tmp_path / "one", tmp_path / "two", tmp_path / "mean") == 0
    assert call(convert, "mix", tmp_path / "one", tmp_path / "two", tmp_path / "all", "--share", 1) == 0
    mean, whole = load_bundle(tmp_path / "mean").state_dict(), load_bundle(tmp_path / "all").state_dict()
    others = two.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(mean[name], (value + others[name]) / 2)
        torch.testing.assert_close(whole[name], others[name])
    assert not torch.equal(mean["codec.decoder.exit.weight"], whole["codec.decoder.exit.weight"])


@pytest.mark.parametrize(("share", "message"), [("1.5", "1.5 is no share"), ("half", "half is no share")])
def test_a_share_is_a_number_from_0_to_1(
    share: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(convert, "mix", "one", "two", tmp_path / "mean", "--share", share) == 2
    assert message in capsys.readouterr().err


def test_different_models_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_bundle(tiny_model(), tmp_path / "one")
    config = OmegaConf.load(ROOT / "tests" / "configs" / "tiny_model.yaml")
    config.codec.decoder_channels = [8, 8, 8, 6]
    OmegaConf.save(config, tmp_path / "two.yaml")
    assert call(convert, "fresh", tmp_path / "two.yaml", tmp_path / "two") == 0
    assert call(convert, "mix", tmp_path / "one", tmp_path / "two", tmp_path / "mean") == 2
    assert "are different models" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_models_that_were_shown_colour_in_other_places_do_not_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tiny_model(), tiny_model()
    two.codec.colour_shift = two.codec.config["colour_shift"] = -0.5
    save_bundle(one, tmp_path / "one")
    save_bundle(two, tmp_path / "two")
    assert load_bundle(tmp_path / "two").codec.colour_shift == -0.5
    assert call(convert, "mix", tmp_path / "one", tmp_path / "two", tmp_path / "mean") == 2
    assert "colour_shift" in capsys.readouterr().err
