"""LoRA: adapters that begin as nothing, train alone, lie in a small file that others read, and merge into the weights.

What a merged file must give is taken from peft and diffusers, which load the same file into the plain 2-D UNet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.models.bundle import save_bundle
from ldm_video.models.inflate import VideoUNet, inflate
from ldm_video.models.lora import (
    LoRA,
    adapter_parameters,
    add_adapters,
    merge_adapter,
    open_adapted,
    read_adapter,
    save_adapter,
)
from ldm_video.models.open_model import FRAME_BY_FRAME, open_model
from tests.lora_support import plain_unet, run_denoiser, write_checkpoints
from tests.model_support import perturb
from tests.train_support import differing

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory)


def stir(denoiser: VideoUNet) -> None:
    """Adapters as after much training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(denoiser):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def merged(base: Path, adapter: object) -> dict[str, Tensor]:
    """The weights of the plain UNet with an adapter merged in by us."""
    denoiser = inflate(plain_unet(base), FRAME_BY_FRAME)
    merge_adapter(denoiser, read_adapter(str(adapter)))
    return denoiser.unet.state_dict()


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


# In the model.


@pytest.mark.parametrize("temporal", [False, True])
def test_new_adapters_change_nothing_and_merged_ones_what_they_did(
    checkpoints: dict[str, Path], tmp_path: Path, temporal: bool
) -> None:
    model, base = open_model(checkpoints["x4-upscaler"]), tmp_path / "bundle"
    perturb(model.denoiser)  # temporal layers as after training
    save_bundle(model, base)
    denoiser = open_model(base).denoiser
    before = run_denoiser(denoiser)
    add_adapters(denoiser, LoRA(rank=3, alpha=6, temporal=temporal))
    assert torch.equal(run_denoiser(denoiser), before)
    parameters = {id(p) for p in adapter_parameters(denoiser)}
    names = [name for name, p in denoiser.named_parameters() if id(p) in parameters]
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert any(".temporal." in name for name in names) == temporal
    layers = [name for name, _ in model.named_modules() if name.endswith(tuple(f".{n}" for n in ATTENTION))]
    layers = [name for name in layers if name.startswith("denoiser.")]
    assert len(names) == 2 * sum(temporal or ".temporal." not in name for name in layers)
    stir(denoiser)
    unmerged = run_denoiser(denoiser)
    save_adapter(denoiser, tmp_path / "adapter", str(base))
    adapter = read_adapter(str(tmp_path / "adapter"))
    assert (unmerged - before).abs().max() > 0.01
    torch.testing.assert_close(run_denoiser(open_adapted(base, adapter).denoiser), unmerged, rtol=0, atol=1e-5)
    if temporal:
        with pytest.raises(UserError, match=r"temporal\.attention\.to_k\.weight' is not in this model"):
            open_adapted(checkpoints["x4-upscaler"], adapter)


# Files that others read, and files of others.


def test_peft_and_diffusers_read_our_file(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    base, folder = checkpoints["x4-upscaler"], tmp_path / "adapter"
    denoiser = inflate(plain_unet(base), FRAME_BY_FRAME)
    add_adapters(denoiser, LoRA(rank=4, alpha=10))
    stir(denoiser)
    save_adapter(denoiser, folder, "the base")
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    facts = json.loads((folder / "adapter_config.json").read_text())
    assert (facts["r"], facts["lora_alpha"], facts["base_model_name_or_path"]) == (4, 10, "the base")
    assert sorted(facts["target_modules"]) == sorted(ATTENTION)
    ours = merged(base, folder)
    with_peft = PeftModel.from_pretrained(plain_unet(base), str(folder))
    assert_same(ours, with_peft.merge_and_unload().state_dict())
    with_diffusers = plain_unet(base)
    with_diffusers.load_lora_adapter(folder, prefix="base_model.model", weight_name="adapter_model.safetensors")
    with_diffusers.fuse_lora()
    with_diffusers.unload_lora()
    assert_same(ours, with_diffusers.state_dict())


def in_form(form: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """peft's names of the UNet's weights -> those of a published file. ``kohya``: with alphas, and the text's part."""

    def oldest(match: re.Match[str]) -> str:
        return f".processor.{match[1]}_lora.{'down' if match[2] == 'A' else 'up'}"

    match form:
        case "older":
            state = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in state.items()}
        case "oldest":
            state = {re.sub(r"\.(to_q|to_k|to_v|to_out)(?:\.0)?\.lora_([AB])", oldest, k): v for k, v in state.items()}
    state = {f"unet.{key}": value for key, value in state.items()}
    if form == "kohya":
        text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        state = convert_state_dict_to_kohya(state)
        state = {key: torch.tensor(2.0) if key.endswith(".alpha") else value for key, value in state.items()}
        state |= {f"{text}.lora_down.weight": torch.ones(4, 64), f"{text}.lora_up.weight": torch.ones(64, 4)}
    return {key: value.contiguous() for key, value in state.items()}


@pytest.mark.parametrize(("form", "scale"), [("diffusers", 1), ("older", -0.5), ("oldest", 1), ("kohya", 0.5)])
def test_a_published_lora_gives_what_diffusers_makes_of_it(
    checkpoints: dict[str, Path], tmp_path: Path, form: str, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    base, file = checkpoints["sd15"], tmp_path / "style.safetensors"
    unet = plain_unet(base)
    layers = ATTENTION if form == "oldest" else [*ATTENTION, "proj_in"]  # a convolution
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=layers, init_lora_weights=False))
    state = get_peft_model_state_dict(unet, save_embedding_layers=False)
    save_file(in_form(form, state), file)

    ours = merged(base, f"{file}:{scale}")
    assert ("text encoder are left out" in caplog.text) == (form == "kohya")
    unet = plain_unet(base)
    StableDiffusionPipeline.load_lora_into_unet(*StableDiffusionPipeline.lora_state_dict(str(file)), unet)
    unet.fuse_lora(lora_scale=scale)
    unet.unload_lora()
    assert_same(ours, unet.state_dict())
    assert len(differing(ours, plain_unet(base).state_dict())) == len(state) // 2


def test_each_layer_has_its_own_alpha_and_rank(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Alphas of kohya's files, patterns and rank-stabilised scaling of peft's, against peft itself."""
    base, folder = checkpoints["sd15"], tmp_path / "adapter"
    unet = plain_unet(base)
    patterns = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {r"attn2\.to_k": 3, "to_v": 5}}
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=ATTENTION, init_lora_weights=False, use_rslora=True, **patterns
    )
    PeftModel(unet, config).save_pretrained(str(folder))
    ours = merged(base, folder)
    theirs = PeftModel.from_pretrained(plain_unet(base), str(folder))
    assert_same(ours, theirs.merge_and_unload().state_dict())

    path, name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1", "lora_unet_down_blocks_0_attentions_0_"
    state, expected = {}, {}
    for layer, alpha in {"to_q": 1.0, "to_k": 3.0}.items():
        down, up = torch.randn(2, 32), torch.randn(32, 2)
        state |= {
            f"{name}transformer_blocks_0_attn1_{layer}.lora_{k}.weight": v for k, v in (("down", down), ("up", up))
        }
        state[f"{name}transformer_blocks_0_attn1_{layer}.alpha"] = torch.tensor(alpha)
        expected[f"{path}.{layer}.weight"] = alpha / 2 * up @ down
    save_file(state, tmp_path / "kohya.safetensors")
    after, before = merged(base, tmp_path / "kohya.safetensors"), plain_unet(base).state_dict()
    for key, change in expected.items():
        torch.testing.assert_close(after[key], before[key] + change)


@pytest.mark.parametrize("whole", [False, True])
def test_the_entrance_of_a_published_unet(checkpoints: dict[str, Path], tmp_path: Path, whole: bool) -> None:
    """Its channels are the first ones of ``conv_in``, which an opened checkpoint has grown."""
    base, folder = checkpoints["sd15"], tmp_path / "adapter"
    layers = {"modules_to_save": ["conv_in"]} if whole else {}
    targets = ATTENTION if whole else [*ATTENTION, "conv_in"]
    tuned = PeftModel(plain_unet(base), LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **layers))
    perturb(tuned, 0.05)  # what is saved whole too
    tuned.save_pretrained(str(folder))
    theirs = PeftModel.from_pretrained(plain_unet(base), str(folder)).merge_and_unload().state_dict()
    ours = open_adapted(base, read_adapter(str(folder))).denoiser.unet.state_dict()
    first, rest = ours["conv_in.weight"][:, :4], ours["conv_in.weight"][:, 4:]
    torch.testing.assert_close(first, theirs["conv_in.weight"])
    assert rest.shape[1] > 0 and not rest.any()
    before = plain_unet(base).state_dict()["conv_in.weight"]
    assert (first - before).abs().max() > 1e-3
    half = open_adapted(base, read_adapter(f"{folder}:0.5")).denoiser.unet.conv_in.weight
    torch.testing.assert_close(half[:, :4], (first + before) / 2)

    adapter = read_adapter(str(folder))
    wrong = replace(adapter, pairs={}, full={"conv_in.weight": torch.zeros(32, 4, 1, 1)})  # of another kernel
    with pytest.raises(UserError, match=r"'conv_in.weight' is 32 x 4"):
        open_adapted(base, wrong)
