"""Codecs: the image codec is its autoencoder; the video codec starts from the guess and sees a bounded distance."""

from __future__ import annotations

import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_video.core.evidence import Evidence
from ldm_video.models.codec import ImageCodec, ResidualBlock, VideoCodec
from ldm_video.models.patch_basis import patch_basis
from tests.model_support import assert_tile_agrees, clip_evidence, perturb, rand_pixels, randn, small_autoencoder


def small_codec(latent_channels: int = 4, perturbed: bool = True) -> VideoCodec:
    codec = VideoCodec(latent_channels, (8, 8, 8, 4), (2, 2, 1)).eval().requires_grad_(False)
    if perturbed:
        perturb(codec, 0.1)
    return codec


def latents_for(evidence: Evidence, codec: VideoCodec, seed: int = 0) -> Tensor:
    height, width = evidence.size
    return randn(1, evidence.guess.shape[1], codec.latent_channels, height // 8, width // 8, seed=seed)


def test_image_codec_is_the_autoencoder_frame_by_frame() -> None:
    autoencoder = small_autoencoder()
    codec = ImageCodec(autoencoder)
    assert (codec.factor, codec.latent_channels) == (4, 3)
    pixels, evidence = rand_pixels(2, 3, 3, 16, 24), clip_evidence(3, (4, 6))
    latents = codec.encode(pixels, evidence)
    assert latents.shape == (2, 3, 3, 4, 6)
    decoded = codec.decode(latents, evidence)
    for b in range(2):
        for t in range(3):
            mean = autoencoder.encode(pixels[b, t][None]).latent_dist.mean
            torch.testing.assert_close(latents[b, t][None], mean * 0.7)
            torch.testing.assert_close(decoded[b, t][None], autoencoder.decode(mean).sample)


def test_image_codec_takes_scaling_and_shift_from_the_config() -> None:
    plain, shifted = small_autoencoder(), small_autoencoder()
    shifted.register_to_config(scaling_factor=2.0, shift_factor=0.25)
    pixels, evidence = rand_pixels(1, 1, 3, 8, 8), clip_evidence(1, (2, 2))
    raw = ImageCodec(plain).encode(pixels, evidence) / 0.7
    scaled = ImageCodec(shifted).encode(pixels, evidence)
    torch.testing.assert_close(scaled, (raw - 0.25) * 2)
    decoded = [ImageCodec(plain).decode(raw * 0.7, evidence), ImageCodec(shifted).decode(scaled, evidence)]
    torch.testing.assert_close(*decoded)


def test_video_codec_shapes() -> None:
    codec = small_codec(5)
    evidence = clip_evidence(3, (8, 12))
    latents = codec.encode(rand_pixels(1, 3, 3, 32, 48), evidence)
    assert latents.shape == (1, 3, 5, 4, 6)
    assert codec.decode(latents, evidence).shape == (1, 3, 3, 32, 48)


def test_a_new_video_codec_returns_the_draft_and_without_latents_the_guess() -> None:
    codec, evidence = small_codec(perturbed=False), clip_evidence(2, (8, 8))
    latents = latents_for(evidence, codec)
    assert torch.equal(codec.decode(latents, evidence), codec.draft(latents, evidence))
    assert torch.equal(codec.decode(torch.zeros_like(latents), evidence), evidence.guess)


def test_latents_are_the_cosine_coefficients_of_what_the_guess_misses() -> None:
    codec, evidence = small_codec(192, perturbed=False), clip_evidence(2, (4, 8))
    codec.latent_std *= 1.7
    pixels = rand_pixels(1, 2, 3, 16, 32)
    latents = codec.encode(pixels, evidence)
    patch = (pixels - evidence.guess)[0, 1, :, 8:16, 16:24].numpy()  # 3 8 8, row 1 and column 2 of the grid
    luma = scipy.fft.dctn(patch.sum(axis=0) / 3**0.5, norm="ortho")
    assert latents[0, 1, 0, 1, 2] * 1.7 == pytest.approx(luma[0, 0], abs=1e-5)
    assert sorted((latents[0, 1, :3, 1, 2] * 1.7).tolist()) == pytest.approx(
        sorted(luma[[0, 0, 1], [0, 1, 0]]), abs=1e-5
    )
    torch.testing.assert_close(codec.draft(latents, evidence), pixels, atol=1e-5, rtol=0)  # all 192: nothing is lost


def test_a_guess_that_misses_nothing_has_latents_of_zero() -> None:
    codec, evidence = small_codec(), clip_evidence(2, (4, 8))
    assert not codec.encode(evidence.guess, evidence).any()


@pytest.mark.parametrize(("components", "luma"), [(1, 1), (4, 4), (32, 26), (96, 64), (192, 64)])
def test_the_basis_is_orthonormal_and_gives_luma_the_most(components: int, luma: int) -> None:
    basis = patch_basis(components).flatten(1)  # components 192
    torch.testing.assert_close(basis @ basis.T, torch.eye(components), atol=1e-5, rtol=0)
    grey = (basis.unflatten(1, (3, 64)).diff(dim=1).abs().amax(dim=(1, 2)) < 1e-6).sum()
    assert int(grey) == luma
    changes = basis.unflatten(1, (3, 8, 8))[: min(luma, 10)].diff(dim=-1).square().sum(dim=(1, 2, 3))
    assert changes[0] < 1e-9  # the first is flat, and frequencies rise
    with pytest.raises(ValueError, match="1 to 192"):
        patch_basis(193)


def test_a_new_decoder_draws_no_checkerboard() -> None:
    decoder = small_codec(perturbed=False).decoder
    for conv in (decoder.up4, decoder.up2, decoder.up1):
        shuffled = F.pixel_shuffle(conv(randn(1, conv.in_channels, 5, 6)), 2)
        nearest = F.interpolate(shuffled[..., ::2, ::2], scale_factor=2, mode="nearest")
        torch.testing.assert_close(shuffled, nearest)
        assert shuffled[..., ::2, ::2].std() > 0.01


def test_every_part_of_the_evidence_reaches_the_pixels() -> None:
    codec, evidence = small_codec(), clip_evidence(2, (8, 8))
    latents = latents_for(evidence, codec)
    before = codec.decode(latents, evidence)
    changed = {
        "guess": Evidence(evidence.guess.flip(-1), evidence.hole, evidence.known, evidence.lowres),
        "hole": Evidence(evidence.guess, 1 - evidence.hole, evidence.known, evidence.lowres),
        "known": Evidence(evidence.guess, evidence.hole, 1 - evidence.known, evidence.lowres),
    }
    correction = before - codec.draft(latents, evidence)
    for other in changed.values():
        assert (codec.decode(latents, other) - codec.draft(latents, other) - correction).abs().max() > 1e-3
    draft = codec.draft(latents, evidence)
    redrawn = codec.decoder(latents, evidence, draft.flip(-1)) - draft.flip(-1)
    assert (redrawn - correction).abs().max() > 1e-3
    assert (codec.decode(latents_for(evidence, codec, seed=1), evidence) - before).abs().max() > 1e-3


def test_decoding_mixes_neighbouring_frames_only_once_the_temporal_layers_have_weights() -> None:
    evidence = clip_evidence(5, (4, 4))
    for perturbed in (False, True):
        codec = small_codec(perturbed=False)
        with torch.no_grad():
            codec.decoder.exit.weight.normal_(generator=torch.Generator().manual_seed(0))
        if perturbed:
            perturb(codec, 0.1)
        latents = latents_for(evidence, codec)
        other = latents.clone()
        other[:, 0] += 1
        change = (codec.decode(other, evidence) - codec.decode(latents, evidence)).abs().amax(dim=(0, 2, 3, 4))
        assert change[0] > 1e-3
        # Two convolutions of three frames, on the f8 and the f4 grid.
        assert [bool(c > 1e-6) for c in change[1:]] == [perturbed, perturbed, False, False]


def test_a_tile_with_enough_overlap_decodes_as_the_whole_does() -> None:
    codec, evidence = small_codec(), clip_evidence(2, (4, 60))  # 16 x 240
    # 3x3 convolutions see one cell to either side: 6 on the f8 grid, 5 on f4, 3 on f2, 1 at full size.
    reach = 6 * 8 + 5 * 4 + 3 * 2 + 1
    assert_tile_agrees(codec, evidence, slice(40, 216), reach)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_frames_that_are_finished_apart_are_those_of_the_whole_clip(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, evidence = small_codec(), clip_evidence(5, (8, 12))
    latents = latents_for(evidence, codec)
    whole = codec.decode(latents, evidence)
    monkeypatch.setattr("ldm_video.core.tensors.CPU_PIXELS", at_once * 32 * 48)
    torch.testing.assert_close(codec.decode(latents, evidence), whole)


def test_residual_blocks_start_as_the_identity() -> None:
    x = randn(2, 8, 5, 5)
    assert torch.equal(ResidualBlock(8)(x), x)


def test_track_scale_converges_to_the_deviation() -> None:
    codec = small_codec(perturbed=False)
    std = torch.tensor([0.1, 1.0, 2.0, 0.5])
    for step in range(300):
        codec.track_scale(randn(2, 2, 4, 8, 8, seed=step) * std.view(-1, 1, 1))
    torch.testing.assert_close(codec.latent_std, std, atol=0.01, rtol=0.02)
    codec.track_scale(randn(64, 2, 4, 8, 8) * std.view(-1, 1, 1), momentum=1.0)
    torch.testing.assert_close(codec.latent_std, std, atol=0.01, rtol=0.02)


@pytest.mark.parametrize(
    "codec",
    [small_codec(), ImageCodec(small_autoencoder())],
    ids=["video", "image"],
)
def test_decoder_parameters_are_those_that_pixels_depend_on(codec: nn.Module) -> None:
    codec.requires_grad_(True)
    evidence = clip_evidence(2, (4, 8))
    latents = randn(1, 2, codec.latent_channels, evidence.size[0] // codec.factor, evidence.size[1] // codec.factor)
    codec.decode(latents, evidence).square().mean().backward()
    reached = {id(p) for p in codec.parameters() if p.grad is not None}
    assert reached == {id(p) for p in codec.decoder_parameters()}
    codec.zero_grad()
    codec.requires_grad_(False)


def test_an_autoencoder_of_images_stays_out_of_half_precision() -> None:
    """Stable Diffusion's overflows in float16, in training (autocast) as elsewhere."""
    codec, evidence = ImageCodec(small_autoencoder()), clip_evidence(1, (8, 8))
    pixels = evidence.guess * 0.5
    with torch.no_grad():
        latents = codec.encode(pixels, evidence)
        decoded = codec.decode(latents, evidence)
        with torch.autocast("cpu", dtype=torch.float16):
            assert torch.equal(codec.encode(pixels, evidence), latents)
            assert torch.equal(codec.decode(latents, evidence), decoded)
