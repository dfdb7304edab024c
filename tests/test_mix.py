"""The mean of two trained models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from omegaconf import OmegaConf

from ldm_video import convert
from ldm_video.models.alike import difference
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.inflate import VideoUNet
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.models.video_model import VideoModel
from tests.cli_support import ROOT, call, tiny_model
from tests.model_support import perturb, small_video_model


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


@pytest.mark.parametrize(("share", "message"), [("1.5", "1.5 is not a fraction"), ("half", "half is not a fraction")])
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


def changed_scheduler(**options: object) -> Callable[[VideoModel], None]:
    def change(model: VideoModel) -> None:
        model.scheduler = DDIMScheduler.from_config(model.scheduler.config, **options)

    return change


def changed_denoiser(part: str, **options: object) -> Callable[[VideoModel], None]:
    def change(model: VideoModel) -> None:
        config = model.denoiser.config
        config["unet"].pop("_use_default_values", None)  # or diffusers puts its defaults there once more
        model.denoiser = VideoUNet.from_config({**config, part: {**config[part], **options}})

    return change


def diffusion_model() -> VideoModel:
    model = tiny_model()
    model.scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False)
    return model


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed_scheduler(prediction_type="epsilon"), "scheduler's prediction_type"),
        (changed_scheduler(beta_end=0.012), "scheduler's beta_end"),
        (changed_scheduler(rescale_betas_zero_snr=True), "scheduler's rescale_betas_zero_snr"),
        (lambda model: setattr(model, "scheduler", tiny_model().scheduler), "scheduler's prediction_type"),  # a flow
        (changed_denoiser("temporal", head_dim=2), "denoiser's head_dim"),
        (changed_denoiser("temporal", heads=2), "denoiser's heads"),
        (changed_denoiser("unet", attention_head_dim=2), "denoiser's attention_head_dim"),
    ],
)
def test_models_whose_weights_mean_something_else_do_not_mix(
    change: Callable[[VideoModel], None], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = diffusion_model(), diffusion_model()
    change(two)
    assert {name: value.shape for name, value in one.state_dict().items()} == {
        name: value.shape for name, value in two.state_dict().items()
    }
    save_bundle(one, tmp_path / "one")
    save_bundle(two, tmp_path / "two")
    assert call(convert, "mix", tmp_path / "one", tmp_path / "two", tmp_path / "mean") == 2
    error = capsys.readouterr().err
    assert f"are different models: {named} differs" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "mean").exists()


def test_what_training_and_use_change_may_differ(tmp_path: Path) -> None:
    """Solver and steps, defaults of sampling, what diffusers notes for itself."""
    one, two = diffusion_model(), diffusion_model()
    two.scheduler = EulerDiscreteScheduler.from_config(one.scheduler.config, timestep_spacing="linspace")
    two.sampling = replace(two.sampling, steps=3, fidelity=0.5)
    two.denoiser.unet.register_to_config(_name_or_path="elsewhere", dropout=0.1)
    save_bundle(one, tmp_path / "one")
    save_bundle(two, tmp_path / "two")
    assert call(convert, "mix", tmp_path / "one", tmp_path / "two", tmp_path / "mean") == 0
    assert load_bundle(tmp_path / "mean").sampling == one.sampling


def test_restorers_of_another_share_mix() -> None:
    sizes = {"latent_channels": 4, "decoder_channels": (8, 8, 8, 4), "decoder_blocks": (1, 1, 1)}
    one, two = small_video_model(), small_video_model()
    one.codec = PairedCodec(**sizes, restorer_channels=(4, 4), restorer_blocks=1, share=0.4, every=16)
    two.codec = PairedCodec(**sizes, restorer_channels=(4, 4), restorer_blocks=1, share=0.6, every=1)
    assert difference(one, two) is None
    assert difference(one, small_video_model()) == "codec's restorer_channels"
