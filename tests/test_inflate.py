"""Inflated UNets: equal to the 2-D model at first, trainable everywhere, temporal once the new layers have weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.models.inflate import VideoUNet, grow_conv_in, inflate, split_state_dict
from ldm_video.models.temporal import TemporalBlock, TemporalConfig

TEXT_WIDTH = 24
SMALL = {"norm_num_groups": 8, "layers_per_block": 2, "cross_attention_dim": TEXT_WIDTH, "sample_size": 16}
CROSS_DOWN, CROSS_UP = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3

# Block types, layers and switches as in the published config.json files; widths are small.
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {
        **SMALL,
        "in_channels": 4,
        "attention_head_dim": 8,
        "block_out_channels": (16, 32, 32, 32),
        "down_block_types": (*CROSS_DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *CROSS_UP),
    },
    "sd2-inpainting": {
        **SMALL,
        "in_channels": 9,
        "attention_head_dim": (2, 4, 4, 4),
        "use_linear_projection": True,
        "block_out_channels": (16, 32, 32, 32),
        "down_block_types": (*CROSS_DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *CROSS_UP),
    },
    "sd-x4-upscaler": {
        **SMALL,
        "in_channels": 7,
        "attention_head_dim": 8,
        "use_linear_projection": True,
        "num_class_embeds": 1000,
        "only_cross_attention": (True, True, True, False),
        "block_out_channels": (16, 32, 32, 32),
        "down_block_types": ("DownBlock2D", *CROSS_DOWN),
        "up_block_types": (*CROSS_UP, "UpBlock2D"),
    },
    "text-free": {
        "sample_size": None,
        "in_channels": 20,
        "out_channels": 8,
        "block_out_channels": (16, 24, 32),
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "mid_block_type": "UNetMidBlock2D",
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
    },
}
CONFIGS["no-mid-block"] = {**CONFIGS["text-free"], "mid_block_type": None}
TEMPORAL = TemporalConfig(head_dim=8)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flat_unet(name: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**CONFIGS[name]).eval()


def inputs(name: str, batch: int = 2, frames: int = 3) -> dict[str, Any]:
    """Keyword arguments of ``VideoUNet.forward``: another timestep, text and class for each clip."""
    has_text = "cross_attention_dim" in CONFIGS[name]
    return {
        "sample": noise(batch, frames, CONFIGS[name]["in_channels"], 8, 8),
        "timestep": torch.arange(batch) * 100 + 7,
        "encoder_hidden_states": noise(batch, 5, TEXT_WIDTH, seed=1) if has_text else None,
        "class_labels": torch.arange(batch) + 20 if "num_class_embeds" in CONFIGS[name] else None,
    }


def awake(model: VideoUNet) -> VideoUNet:
    """The model with random temporal output layers in place of zeros."""
    blocks = (module for module in model.modules() if isinstance(module, TemporalBlock))
    for seed, layer in enumerate(layer for block in blocks for layer in block.output_layers()):
        layer.weight.data = 0.1 * noise(*layer.weight.shape, seed=seed)
    return model


def per_frame(value: Any, frames: int) -> Any:
    return value.repeat_interleave(frames, dim=0) if isinstance(value, Tensor) else value


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_new_model_equals_the_flat_one_bit_for_bit(name: str) -> None:
    unet, arguments = flat_unet(name), inputs(name)
    clip = arguments["sample"]
    frames = clip.shape[1]
    conditions = {key: value for key, value in arguments.items() if key != "sample"}
    conditions.setdefault("encoder_hidden_states", None)
    folded = unet(clip.flatten(0, 1), **{key: per_frame(value, frames) for key, value in conditions.items()}).sample
    alone = [unet(clip[:, frame], **conditions).sample for frame in range(frames)]

    model = inflate(unet, TEMPORAL)

    output = model(**arguments)
    assert torch.equal(output, folded.view_as(output))
    for frame in range(frames):  # a clip of one frame is an image
        assert torch.equal(model(clip[:, frame : frame + 1], **conditions)[:, 0], alone[frame])
        # Another batch size takes other matrix kernels in torch itself, hence no equality of bits here.
        torch.testing.assert_close(output[:, frame], alone[frame], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "no-mid-block"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_every_trainable_parameter_receives_a_gradient(name: str, checkpointing: bool, frozen: bool) -> None:
    model = inflate(flat_unet(name), TEMPORAL)
    if checkpointing:
        model.enable_gradient_checkpointing()
    for parameter in model.spatial_parameters():
        parameter.requires_grad_(not frozen)
    for perturb in (False, True):
        model.zero_grad(set_to_none=True)
        (awake(model) if perturb else model)(**inputs(name, batch=1)).square().mean().backward()
        trainable = {key: value for key, value in model.named_parameters() if value.requires_grad}
        assert frozen == (len(trainable) == len(list(model.temporal_parameters())))
        for key, parameter in trainable.items():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
            if perturb and ".temporal." in key:
                assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["sd-x4-upscaler", "text-free"])
def test_checkpointed_gradients_equal_plain_ones(name: str) -> None:
    """Two clips of different length before one backward pass: each is recomputed with its own frame count."""
    model = awake(inflate(flat_unet(name), TEMPORAL))
    calls: list[int] = []
    block = next(module for module in model.modules() if isinstance(module, TemporalBlock))
    block.register_forward_pre_hook(lambda _module, arguments: calls.append(arguments[1]))

    def gradients() -> list[Tensor]:
        calls.clear()
        model.zero_grad(set_to_none=True)
        long, short = model(**inputs(name, batch=1, frames=4)), model(**inputs(name, batch=2, frames=2))
        (long.square().mean() + short.abs().mean()).backward()
        return [parameter.grad for parameter in model.parameters()]

    plain = gradients()
    assert calls == [4, 2]
    model.enable_gradient_checkpointing()
    recomputed = gradients()
    assert calls[:2] == [4, 2] and sorted(calls[2:]) == [2, 4]  # temporal blocks are recomputed too
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(other, one, atol=1e-7, rtol=1e-5)
    model.disable_gradient_checkpointing()
    gradients()
    assert calls == [4, 2]


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd15", "text-free"])
def test_frames_of_a_clip_are_mixed_and_clips_are_not(name: str) -> None:
    model, arguments = awake(inflate(flat_unet(name), TEMPORAL)), inputs(name, frames=4)
    before = model(**arguments)
    arguments["sample"] = arguments["sample"].clone()
    arguments["sample"][0, 0] += noise(*arguments["sample"].shape[2:], seed=5)
    after = model(**arguments)
    assert (after[0, 3] - before[0, 3]).abs().max() > 1e-3
    assert torch.equal(after[1], before[1])


@torch.no_grad()
def test_conditions_belong_to_their_clip() -> None:
    model, arguments = awake(inflate(flat_unet("sd-x4-upscaler"), TEMPORAL)), inputs("sd-x4-upscaler")
    together = model(**arguments)
    for clip in range(2):
        alone = model(**{key: value[clip : clip + 1] for key, value in arguments.items()})
        torch.testing.assert_close(together[clip], alone[0], atol=1e-5, rtol=1e-5)
    text = arguments["encoder_hidden_states"]
    arguments["encoder_hidden_states"] = text[:, None].expand(-1, 3, -1, -1)  # b n d -> b t n d
    assert torch.equal(model(**arguments), together)
    arguments["timestep"] = 7  # the number that clip 0 had
    torch.testing.assert_close(model(**arguments)[0], together[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_state_and_config_rebuild_the_model_and_the_flat_one() -> None:
    model, arguments = awake(inflate(flat_unet("sd-x4-upscaler"), TEMPORAL)), inputs("sd-x4-upscaler")
    config = json.loads(json.dumps(model.config))
    again = VideoUNet.from_config(config).eval()
    again.load_state_dict(model.state_dict())
    assert again.config == config
    assert torch.equal(again(**arguments), model(**arguments))

    original = flat_unet("sd-x4-upscaler").state_dict()
    spatial, temporal = split_state_dict(model.state_dict())
    assert spatial.keys() == original.keys()
    assert all(torch.equal(spatial[key], value) for key, value in original.items())
    UNet2DConditionModel.from_config(config["unet"]).load_state_dict(spatial)
    assert len(spatial) + len(temporal) == len(model.state_dict())
    assert "unet.down_blocks.0.resnets.1.temporal.attention.to_q.weight" in temporal
    assert "unet.mid_block.attentions.0.temporal.conv.weight" in temporal


def test_spatial_and_temporal_parameters_are_all_and_disjoint() -> None:
    flat = sum(parameter.numel() for parameter in flat_unet("sd15").parameters())
    model = inflate(flat_unet("sd15"), TEMPORAL)
    spatial, temporal = list(model.spatial_parameters()), list(model.temporal_parameters())
    assert sum(parameter.numel() for parameter in spatial) == flat
    assert {*map(id, spatial), *map(id, temporal)} == set(map(id, model.parameters()))
    assert not {*map(id, spatial)} & {*map(id, temporal)}


def test_temporal_layers_stand_on_the_levels_asked_for() -> None:
    model = inflate(flat_unet("text-free"), TemporalConfig(head_dim=8, attention_levels=(2,), conv_levels=(0, 2)))
    blocks = {
        name.removeprefix("unet.").removesuffix(".temporal"): (block.attention is not None, block.conv is not None)
        for name, block in model.named_modules()
        if isinstance(block, TemporalBlock)
    }
    conv_only, both = (False, True), (True, True)
    assert blocks == {
        **{f"down_blocks.0.resnets.{index}": conv_only for index in range(2)},
        **{f"down_blocks.2.resnets.{index}": both for index in range(2)},
        "mid_block.resnets.0": both,
        **{f"up_blocks.0.resnets.{index}": both for index in range(3)},
        **{f"up_blocks.2.resnets.{index}": conv_only for index in range(3)},
    }


@torch.no_grad()
def test_half_precision_is_taken_over() -> None:
    model = inflate(flat_unet("text-free").to(torch.bfloat16), TEMPORAL)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(inputs("text-free")["sample"].bfloat16(), 5).dtype == torch.bfloat16


@torch.no_grad()
def test_new_input_channels_change_nothing_at_first() -> None:
    unet, arguments = flat_unet("sd15"), inputs("sd15")
    clip, text = arguments["sample"][:, 0], arguments["encoder_hidden_states"]
    before = unet(clip, 5, text).sample
    grow_conv_in(unet, 9)
    assert unet.config.in_channels == unet.conv_in.in_channels == 9
    # Five more channels sum in another order inside the kernel: equal up to rounding.
    extra = torch.cat([clip, noise(2, 5, 8, 8, seed=3)], dim=1)
    torch.testing.assert_close(unet(extra, 5, text).sample, before, atol=1e-5, rtol=1e-5)
    assert inflate(unet, TEMPORAL).config["unet"]["in_channels"] == 9
    with pytest.raises(UserError, match="9 input channels"):
        grow_conv_in(unet, 4)


def test_user_errors() -> None:
    model = inflate(flat_unet("sd15"), TEMPORAL)
    with pytest.raises(UserError, match="inflated already"):
        inflate(model.unet, TEMPORAL)
    with pytest.raises(UserError, match="no level 4"):
        inflate(flat_unet("sd15"), TemporalConfig(conv_levels=(4,)))
    with pytest.raises(UserError, match="attends to text"):
        model(noise(1, 2, 4, 8, 8), 5)
    with pytest.raises(UserError, match="unknown attention 'flash'"):
        model.set_attention("flash")


@torch.no_grad()
def test_attention_kernel_can_be_chosen() -> None:
    model, arguments = awake(inflate(flat_unet("sd15"), TEMPORAL)), inputs("sd15")
    before = model(**arguments)
    for kernel in ("auto", "sdpa"):
        model.set_attention(kernel)
        assert torch.equal(model(**arguments), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="xformers may be usable beside a GPU")
def test_xformers_that_cannot_run_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="xformers cannot be used here"):
        inflate(flat_unet("sd15"), TEMPORAL).set_attention("xformers")
