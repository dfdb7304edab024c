"""The restorer of pictures: what reaches it, how far it sees, and bundles of the first format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm_video.core.evidence import resize
from ldm_video.models.bundle import INDEX, load_bundle, save_bundle
from ldm_video.models.dense_blocks import DenseTrunk
from ldm_video.models.dense_restorer import DenseRestorer
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.pipeline.arguments import SHIPPED
from tests.model_support import perturb, rand_pixels, randn, small_video_model


def small_restorer() -> DenseRestorer:
    restorer = DenseRestorer((8, 4), 1).eval().requires_grad_(False)
    perturb(restorer, 0.1)
    return restorer


def enlarged(lowres: Tensor) -> Tensor:
    return resize(lowres[:, None], (4 * lowres.shape[-2], 4 * lowres.shape[-1]))[:, 0]


def test_a_draft_is_nothing_to_it_until_it_has_been_trained() -> None:
    lowres, draft = rand_pixels(2, 3, 7, 9), rand_pixels(2, 3, 28, 36, seed=1)
    fresh = DenseRestorer((8, 4), 1).requires_grad_(False)
    assert torch.equal(fresh(lowres, draft), fresh(lowres, enlarged(lowres)))
    trained = small_restorer()
    assert (trained(lowres, draft) - trained(lowres, enlarged(lowres))).abs().max() > 1e-3


def test_a_tile_with_enough_overlap_is_as_the_whole() -> None:
    restorer, lowres = small_restorer(), rand_pixels(1, 3, 6, 80)
    draft = enlarged(lowres) + 0.1 * rand_pixels(1, 3, 24, 320, seed=1)
    whole, tile = restorer(lowres, draft), restorer(lowres[..., 6:74], draft[..., 24:296])
    # The first convolution, 15 of a block, the last, one that enlarges, and two for how bicubic resizing sees frames;
    # at twice the size one that enlarges; two at full size.
    reach = 20 * 4 + 2 + 2
    difference = (tile - whole[..., 24:296]).abs()
    assert difference[..., reach:-reach].max() < 1e-5
    assert difference[..., :4].max() > 1e-3  # at the cut itself the tile cannot know better


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_frames_that_are_drawn_apart_are_those_of_the_whole(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    restorer, lowres = small_restorer(), rand_pixels(5, 3, 8, 12)
    whole = restorer(lowres, enlarged(lowres))
    monkeypatch.setattr("ldm_video.core.tensors.CPU_PIXELS", at_once * 32 * 48)
    torch.testing.assert_close(restorer(lowres, enlarged(lowres)), whole)


def test_a_trunk_of_no_influence_is_its_input() -> None:
    trunk, x = DenseTrunk(8, 2), randn(1, 8, 6, 6)
    with torch.no_grad():
        trunk.last.weight.zero_()
        trunk.last.bias.zero_()
        assert torch.equal(trunk(x), x)
        perturb(trunk.last, 0.1)
        assert not torch.equal(trunk(x), x)


def test_a_bundle_of_the_first_format_is_the_same_model(tmp_path: Path) -> None:
    """Its restorer was a decoder of latents, none of which it was given."""
    model = small_video_model()
    model.codec = PairedCodec(4, (8, 8, 8, 4), (1, 1, 1), (8, 8), 1).eval().requires_grad_(False)
    perturb(model.codec)
    save_bundle(model, tmp_path / "now")
    save_bundle(model, tmp_path / "then")
    weights = tmp_path / "then" / "codec" / "model.safetensors"
    state = load_file(weights)
    draft = state.pop("restorer.draft.weight")
    state["restorer.evidence4.weight"] = torch.cat([draft, torch.zeros(8, 2 * 16, 3, 3)], dim=1)
    state |= {"restorer.latents4.weight": torch.zeros(32, 4, 3, 3), "restorer.replaced": torch.ones(3, 1, 1)}
    state |= {"restorer.mix4.conv.weight": torch.zeros(8, 24), "restorer.mix4.conv.bias": torch.zeros(8)}
    save_file(state, weights)
    index = json.loads((tmp_path / "then" / INDEX).read_text())
    (tmp_path / "then" / INDEX).write_text(json.dumps(index | {"format": 1}))
    now, then = (load_bundle(tmp_path / name).state_dict() for name in ("now", "then"))
    assert now.keys() == then.keys()
    assert all(torch.equal(now[name], then[name]) for name in now)


def test_what_ships_is_shown_drafts() -> None:
    codec = load_bundle(SHIPPED).codec
    assert isinstance(codec, PairedCodec)
    draft: nn.Conv2d = codec.restorer.draft
    assert draft.weight.shape == (64, 48, 3, 3) and draft.weight.abs().max() > 1e-3
