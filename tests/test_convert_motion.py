"""AnimateDiff's motion modules into a bundle: which are loaded, where they sit, and what they compute there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from safetensors.torch import save_file
from torch import Tensor, nn

import ldm_video.convert as convert
from ldm_video.models.bundle import load_bundle
from ldm_video.models.export import spatial_unet
from ldm_video.models.inflate import VideoUNet, WithTemporal
from ldm_video.models.motion_adapter import fold, load_motion, read_motion_adapter
from ldm_video.models.open_model import open_model
from ldm_video.models.temporal import TemporalConfig
from tests.cli_support import call
from tests.convert_support import motion_adapter, write_models
from tests.model_support import perturb, randn

# Where the heads of 16 channels that the bundle below has are the adapter's four: 64 channels, on levels 2 and 3.
CORRESPONDING = {
    "down_blocks.2.attentions.0": "down_blocks.2.motion_modules.0",
    "down_blocks.2.attentions.1": "down_blocks.2.motion_modules.1",
    "down_blocks.3.resnets.0": "down_blocks.3.motion_modules.0",
    "down_blocks.3.resnets.1": "down_blocks.3.motion_modules.1",
    "mid_block.attentions.0": "mid_block.motion_modules.0",
    "up_blocks.0.resnets.0": "up_blocks.0.motion_modules.0",
    "up_blocks.0.resnets.1": "up_blocks.0.motion_modules.1",
    "up_blocks.0.resnets.2": "up_blocks.0.motion_modules.2",
    "up_blocks.1.attentions.0": "up_blocks.1.motion_modules.0",
    "up_blocks.1.attentions.1": "up_blocks.1.motion_modules.1",
    "up_blocks.1.attentions.2": "up_blocks.1.motion_modules.2",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory)


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """AnimateDiff's own names, by hand."""
    new = {}
    for key, value in state.items():
        key = re.sub(r"(motion_modules\.\d)", r"\1.temporal_transformer", key)
        key = re.sub(r"attn([12])", lambda m: f"attention_blocks.{int(m[1]) - 1}", key)
        key = re.sub(r"norm([12])", lambda m: f"norms.{int(m[1]) - 1}", key).replace("norm3", "ff_norm")
        if key.endswith("pos_embed.pe"):
            for attention in (0, 1):
                new[key.replace("pos_embed", f"attention_blocks.{attention}.pos_encoder")] = value.clone()
        else:
            new[key] = value
    return new


@pytest.fixture
def inflated(root: Path) -> VideoUNet:
    return load_bundle(root / "bundle").denoiser


def test_motion_modules_are_loaded_and_counted(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(convert, "add-motion", root / "bundle", root / "motion", tmp_path / "moving") == 0
    said = capsys.readouterr().out
    adapter = MotionAdapter.from_pretrained(root / "motion").state_dict()
    before, after = (load_bundle(folder).denoiser for folder in (root / "bundle", tmp_path / "moving"))
    old, new = before.state_dict(), after.state_dict()
    # Group norm (2), proj_in, norm1, to_q, to_k, to_v of each layer that fits -> layer norm (2), to_q, to_k, to_v.
    written = {
        f"unet.{path}.temporal.{name}"
        for path in CORRESPONDING
        for name in ("attention_norm.weight", "attention_norm.bias", *(f"attention.to_{x}.weight" for x in "qkv"))
    }
    assert {key for key in old if not torch.equal(old[key], new[key])} == written
    assert f"loaded: {7 * 11} of {len(adapter)} tensors of the adapter, from 11 layers, into {5 * 11} tensors" in said
    left = {int(n) for n in re.findall(r"not loaded: (\d+) tensors", said)}
    # Ten narrow layers whole (27 tensors); of the 11: out and proj_out 4, attn2 5 with norm2 2, ff 4 with norm3 2,
    # biases of proj_in and norm1, one table of positions.
    assert left == {10 * 27, 11 * 4, 11 * 13, 11 * 2, 11}
    assert sum(left) + 7 * 11 == len(adapter)
    assert "4 heads of 8 channels there, 2 of 16 here" in said
    for path, name in CORRESPONDING.items():
        for kind in ("weight", "bias"):
            assert torch.equal(new[f"unet.{path}.temporal.attention_norm.{kind}"], adapter[f"{name}.norm.{kind}"])


def test_the_model_is_unchanged_until_its_outputs_are_trained(root: Path, inflated: VideoUNet) -> None:
    def run(model: VideoUNet) -> Tensor:
        with torch.no_grad():
            return model(randn(1, 3, 324, 8, 8), 500, randn(1, 77, 64))

    before = run(inflated)
    untouched = load_bundle(root / "bundle").denoiser
    load_motion(inflated, read_motion_adapter(root / "motion"))
    assert torch.equal(run(inflated), before)
    for model in (inflated, untouched):
        for block in (m.temporal for m in model.modules() if isinstance(m, WithTemporal)):
            nn.init.eye_(block.attention.to_out[0].weight)
    assert (run(inflated) - run(untouched)).abs().max() > 1e-3


@pytest.mark.parametrize("names", [published, dict])
def test_a_single_file_of_motion_modules(names: Callable[..., Any], root: Path, tmp_path: Path) -> None:
    adapter = motion_adapter(motion_num_attention_heads=8)  # which a file does not tell: as published
    state = adapter.state_dict()
    adapter.save_pretrained(tmp_path / "motion")
    save_file({f"module.{key}": value for key, value in names(state).items()}, tmp_path / "mm.safetensors")
    models = [open_model(root / "sd15", temporal=TemporalConfig(head_dim=8)).denoiser for _ in range(2)]
    states, reports = [], []
    for model, path in zip(models, ("motion", "mm.safetensors"), strict=True):
        reports.append(load_motion(model, read_motion_adapter(tmp_path / path)))
        states.append(model.state_dict())
    assert len(reports[0].written) == 55
    written = reports[0].written
    assert reports[1].written == written
    assert all(torch.equal(states[0][key], states[1][key]) for key in written)
    positions = [sum(map(len, (names for why, names in r.left.items() if "position" in why))) for r in reports]
    assert positions == [11, 21 * 2 if names is published else 11]


def test_layers_stand_where_diffusers_puts_them(root: Path, inflated: VideoUNet) -> None:
    """What reaches a motion module in diffusers' own video UNet is what reaches the layer that it is loaded into."""
    adapter = motion_adapter()
    for name, parameter in adapter.named_parameters():
        if "proj_out" in name:  # the identity, as our layers are
            nn.init.zeros_(parameter)
    unet, _ = spatial_unet(inflated, 4)
    theirs = UNetMotionModel.from_unet2d(unet, adapter).eval()
    seen: dict[str, Tensor] = {}

    def watch(model: nn.Module, kind: type[nn.Module], rename: dict[str, str]) -> None:
        for name, module in model.named_modules():
            if isinstance(module, kind) and name in rename:
                inner = module.temporal if isinstance(module, WithTemporal) else module

                def keep(
                    _: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], key: str = rename[name]
                ) -> None:
                    seen[key] = inputs[0] if inputs else kwargs["hidden_states"]

                inner.register_forward_pre_hook(keep, with_kwargs=True)

    watch(inflated.unet, WithTemporal, {ours: f"ours {name}" for ours, name in CORRESPONDING.items()})
    watch(theirs, AnimateDiffTransformer3D, {name: f"theirs {name}" for name in CORRESPONDING.values()})
    clip, text = randn(1, 2, 4, 8, 8), randn(1, 77, 64)
    with torch.no_grad():
        inflated(torch.cat([clip, torch.zeros(1, 2, 320, 8, 8)], dim=2), 500, text)
        theirs(clip.transpose(1, 2), 500, text.expand(2, -1, -1))
    assert len(seen) == 2 * len(CORRESPONDING)
    for name in CORRESPONDING.values():
        torch.testing.assert_close(seen[f"ours {name}"], seen[f"theirs {name}"], atol=1e-4, rtol=1e-4)


def test_the_fold_against_diffusers() -> None:
    """Queries, keys and values of diffusers' motion module, up to what the module's docstring leaves out."""
    width = 48
    torch.manual_seed(0)
    theirs = AnimateDiffTransformer3D(
        4, width // 4, width, norm_num_groups=1, positional_embeddings="sinusoidal", num_positional_embeddings=8
    ).eval()  # fmt: skip
    perturb(theirs, 0.2)
    block = theirs.transformer_blocks[0]
    block.pos_embed = None
    for bias in (theirs.proj_in.bias, block.norm1.bias):
        nn.init.zeros_(bias)
    pixel = randn(200, width, seed=1)  # one frame of one pixel each: a group norm of one group is a layer norm
    seen = {}
    for name in "qkv":
        getattr(block.attn1, f"to_{name}").register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        theirs(pixel[:, :, None, None], num_frames=1)
        folded = fold(dict(theirs.state_dict()))
        read = F.layer_norm(pixel, (width,), folded["attention_norm.weight"], folded["attention_norm.bias"])
        for name in "qkv":
            ours = read @ folded[f"attention.to_{name}.weight"].T
            expected = seen[name][:, 0]
            torch.testing.assert_close(F.normalize(ours, dim=1), F.normalize(expected, dim=1), atol=1e-4, rtol=0)
            scales = ours.norm(dim=1) / expected.norm(dim=1)  # a pixel's own deviation against the expected one
            assert 0.95 < scales.mean() < 1.05
            assert scales.std() < 0.15


def test_a_pickled_motion_module_becomes_readable_with_the_line_that_refuses_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = published(motion_adapter(motion_num_attention_heads=8).state_dict())
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "mm.ckpt")
    assert call(convert, "add-motion", root / "bundle", tmp_path / "mm.ckpt", tmp_path / "out") == 2
    command = shlex.split(capsys.readouterr().err.partition("with: ")[2])
    monkeypatch.setattr(sys, "argv", command[2:])  # python -c SCRIPT INPUT OUTPUT
    exec(command[2], {})
    assert len(read_motion_adapter(tmp_path / "mm.safetensors").layers) == 21
