"""The decoder that draws: what it starts as, what reaches it, and how far it sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm_video.config import build, load_config
from ldm_video.core.evidence import Evidence, build_evidence, resize, show_on_grid
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.codec import DrawingCodec
from ldm_video.models.dense_blocks import DenseTrunk
from ldm_video.models.video_model import VideoModel
from tests.cli_support import ROOT
from tests.model_support import assert_tile_agrees, clip_evidence, perturb, rand_pixels, randn


def small_codec(perturbed: bool = True) -> DrawingCodec:
    codec = DrawingCodec(4, (8, 4), 1).eval().requires_grad_(False)
    if perturbed:
        perturb(codec, 0.1)
    return codec


def latents_for(evidence: Evidence, seed: int = 0) -> Tensor:
    height, width = evidence.size
    return randn(1, evidence.guess.shape[1], 4, height // 8, width // 8, seed=seed)


@pytest.fixture
def drawing_model() -> VideoModel:
    model = build(load_config(ROOT / "tests" / "configs" / "tiny_drawing.yaml"))
    perturb(model)
    return model


def test_a_new_one_returns_the_draft_and_without_latents_the_guess() -> None:
    codec, evidence = small_codec(perturbed=False), clip_evidence(2, (8, 8))
    latents = latents_for(evidence)
    assert torch.equal(codec.decode(latents, evidence), codec.draft(latents, evidence))
    assert torch.equal(codec.decode(torch.zeros_like(latents), evidence), evidence.guess)


@pytest.mark.parametrize("part", ["lowres", "hole", "known"])
def test_every_part_of_the_evidence_reaches_the_pixels(part: str) -> None:
    codec, evidence = small_codec(), clip_evidence(2, (8, 8))
    latents = latents_for(evidence)
    parts = {name: getattr(evidence, name) for name in ("guess", "hole", "known", "lowres")}
    parts[part] = parts[part].flip(-1) if part == "lowres" else 1 - parts[part]
    assert (codec.decode(latents, Evidence(**parts)) - codec.decode(latents, evidence)).abs().max() > 1e-3


def test_latents_reach_the_pixels_by_the_draft_and_by_themselves() -> None:
    codec, evidence = small_codec(), clip_evidence(2, (8, 8))
    one, other = latents_for(evidence), latents_for(evidence, seed=1)
    draft = codec.draft(one, evidence)
    change = codec.decoder(other, evidence, draft) - codec.decoder(one, evidence, draft)
    assert change.abs().max() > 1e-3
    assert (codec.decoder(one, evidence, draft + 0.1) - codec.decoder(one, evidence, draft) - 0.1).abs().max() > 1e-3


@torch.no_grad()
def test_where_there_is_nothing_to_see_the_decoder_is_the_same_with_and_without_looking() -> None:
    """Without hole, known pixels and latents a part of the work is left out, unless gradients are taken."""
    codec = small_codec()
    plain = build_evidence(rand_pixels(1, 2, 3, 8, 12), torch.zeros(1, 2, 1, 32, 48))
    latents = torch.zeros(1, 2, 4, 4, 6)
    left_out = codec.decode(latents, plain)
    with torch.enable_grad():
        torch.testing.assert_close(codec.decode(latents, plain), left_out)


def test_detail_beyond_the_grid_of_the_trunk_is_added() -> None:
    """At x2 a cell of the trunk's grid holds four low-res pixels: their detail is in the draft."""
    codec = small_codec(perturbed=False)
    codec.decoder.replaced.fill_(1.0)
    evidence = build_evidence(rand_pixels(1, 1, 3, 16, 16), torch.zeros(1, 1, 1, 32, 32))
    pixels = codec.decode(torch.zeros(1, 1, 4, 4, 4), evidence)
    shown = resize(resize(evidence.lowres, (8, 8)), (32, 32))
    torch.testing.assert_close(pixels, evidence.guess - shown)
    assert pixels.abs().mean() > 0.1


def test_the_grid_shows_the_low_res_frames_and_what_is_known_whole() -> None:
    pixels = rand_pixels(1, 1, 3, 32, 32, seed=1)
    known = torch.zeros(1, 1, 1, 32, 32)
    known[..., :15, :] = 1  # three rows of cells, and most of a fourth
    lowres = rand_pixels(1, 1, 3, 8, 8)
    evidence = build_evidence(lowres, torch.zeros_like(known), known_pixels=pixels, known=known)
    shown = show_on_grid(evidence, (8, 8))
    assert torch.equal(shown[..., 3:, :], lowres[..., 3:, :])
    assert torch.equal(shown[..., :3, :], resize(evidence.guess, (8, 8))[..., :3, :])


def test_frames_are_mixed_once_the_temporal_layer_has_weights() -> None:
    evidence = clip_evidence(5, (4, 4))
    for perturbed in (False, True):
        codec = small_codec(perturbed=False)
        perturb(codec.decoder.exit, 0.5)
        perturb(codec.decoder.latents4, 0.5)
        if perturbed:
            perturb(codec, 0.1)
        latents = latents_for(evidence)
        other = latents.clone()
        other[:, 0] += 1
        change = (codec.decode(other, evidence) - codec.decode(latents, evidence)).abs().amax(dim=(0, 2, 3, 4))
        assert change[0] > 1e-3
        assert [bool(c > 1e-6) for c in change[1:]] == [perturbed, False, False, False]  # a convolution of three


def test_a_tile_with_enough_overlap_decodes_as_the_whole_does() -> None:
    codec, evidence = small_codec(), clip_evidence(2, (4, 80))  # 16 x 320
    # One cell to either side on the f8 grid; on f4 the first convolution, 15 of a block, the last and one that
    # enlarges, and two more for how bicubic resizing sees the frames; on f2 one that enlarges; two at full size.
    reach = 8 + 20 * 4 + 2 + 2
    assert_tile_agrees(codec, evidence, slice(24, 296), reach)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_frames_that_are_drawn_apart_are_those_of_the_whole_clip(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, evidence = small_codec(), clip_evidence(5, (8, 12))
    latents = latents_for(evidence)
    whole = codec.decode(latents, evidence)
    monkeypatch.setattr("ldm_video.core.tensors.CPU_PIXELS", at_once * 32 * 48)
    torch.testing.assert_close(codec.decode(latents, evidence), whole)


def test_a_trunk_of_no_influence_is_its_input() -> None:
    trunk, x = DenseTrunk(8, 2), randn(1, 8, 6, 6)
    with torch.no_grad():
        trunk.last.weight.zero_()
        trunk.last.bias.zero_()
        assert torch.equal(trunk(x), x)
        perturb(trunk.last, 0.1)
        assert not torch.equal(trunk(x), x)


def test_a_bundle_keeps_it(tmp_path: Path, drawing_model: VideoModel) -> None:
    save_bundle(drawing_model, tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    assert isinstance(again.codec, DrawingCodec) and again.codec.config == drawing_model.codec.config
    for name, value in drawing_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
