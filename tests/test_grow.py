"""A larger decoder begins as the smaller one, and everything in it can be trained."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm_video import convert
from ldm_video.core.errors import UserError
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.codec import VideoCodec
from ldm_video.models.grow import grow
from tests.cli_support import ROOT, call, tiny_model
from tests.model_support import clip_evidence, perturb, rand_pixels, randn

LARGER = ((8, 8, 12, 6), (2, 4, 3))


def trained() -> VideoCodec:
    codec = VideoCodec(4, (8, 8, 8, 4), (1, 2, 1))
    perturb(codec, 0.1)
    codec.latent_std *= 1.7
    return codec


def test_it_draws_the_same_pixels() -> None:
    small, large = trained().eval(), VideoCodec(4, *LARGER).eval()
    evidence, latents = clip_evidence(3, (8, 12)), randn(1, 3, 4, 4, 6)
    with torch.no_grad():
        expected = small.decode(latents, evidence)
        assert (expected - large.decode(latents, evidence)).abs().max() > 0.05
        grow(large, small)
        torch.testing.assert_close(large.decode(latents, evidence), expected, atol=1e-5, rtol=0)


def test_what_is_new_learns() -> None:
    large = VideoCodec(4, *LARGER)
    grow(large, trained())
    evidence, latents = clip_evidence(2, (8, 8)), randn(1, 2, 4, 4, 4)
    optimizer = torch.optim.Adam(large.decoder.parameters(), lr=1e-2)
    before = copy.deepcopy(large.state_dict())
    for _ in range(2):  # in the first step only what reads new channels moves
        optimizer.zero_grad()
        (large.decode(latents, evidence) - rand_pixels(1, 2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    for name, parameter in large.decoder.named_parameters():  # nothing is known: an eighth of the evidence is zero
        assert (parameter != before[f"decoder.{name}"]).float().mean() > 0.8, name


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, (8, 8, 8, 4), (1, 1, 1)), r"smaller: it has no decoder\.body4\.2"),
        ((4, (8, 8, 8, 2), (1, 2, 1)), "smaller: decoder"),
        ((4, (8, 12, 8, 4), (1, 2, 1)), "deeper, not wider"),
        ((4, (12, 8, 8, 4), (1, 2, 1)), "deeper, not wider"),
        ((6, (8, 8, 8, 4), (1, 2, 1)), "6 latent channels, it had 4"),
    ],
)
def test_what_cannot_grow_is_refused(shape: tuple, message: str) -> None:
    large = VideoCodec(*shape)
    before = copy.deepcopy(large.state_dict())
    with pytest.raises(UserError, match=message):
        grow(large, trained())
    assert all(torch.equal(before[name], value) for name, value in large.state_dict().items())


def test_a_bundle_grows_into_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    save_bundle(model, tmp_path / "small")
    config = OmegaConf.load(ROOT / "tests" / "configs" / "tiny_model.yaml")
    config.codec.update(decoder_channels=[8, 8, 8, 6], decoder_blocks=[1, 3, 2])
    OmegaConf.save(config, tmp_path / "large.yaml")
    assert call(convert, "grow", tmp_path / "small", tmp_path / "large.yaml", tmp_path / "large") == 0
    assert "a decoder of " in capsys.readouterr().out
    grown = load_bundle(tmp_path / "large")
    assert grown.codec.config["decoder_blocks"] == [1, 3, 2]
    assert all(torch.equal(a, b) for a, b in zip(model.denoiser.parameters(), grown.denoiser.parameters(), strict=True))
    config.codec.update(target="ldm_video.models.paired_codec.PairedCodec", restorer_channels=[8, 8], restorer_blocks=1)
    OmegaConf.save(config, tmp_path / "paired.yaml")
    assert call(convert, "grow", tmp_path / "small", tmp_path / "paired.yaml", tmp_path / "other") == 2
    assert "only a VideoCodec can grow" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
