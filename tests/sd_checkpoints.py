"""Small random Stable Diffusion checkpoints, written by diffusers itself in the layouts of the published ones.

Four kinds, with the published block types, number of levels, heads, schedulers and scaling factors, and few channels.
Where today's libraries write other names than the published files have, the published ones are put in place. Single
files have the keys of the CompVis code, renamed by hand here: independent of the converters that read them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

TEXT_WIDTH = 64
DEPTH = 2  # layers of CLIP's text encoder
OPEN_CLIP_DEPTH = 23  # of OpenCLIP's that Stable Diffusion 2 reads, by whose names the last one is told
# As in the published scheduler_config.json files.
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
X4_BETAS = {**SD_BETAS, "beta_start": 0.0001, "beta_end": 0.02}
PNDM = {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


@dataclass(frozen=True)
class Published:
    """What tells one published checkpoint from another."""

    pipeline: str
    in_channels: int
    widths: tuple[int, ...]
    heads: int | tuple[int, ...]
    blocks: tuple[tuple[str, str], ...]  # down and up, from the highest resolution
    autoencoder_levels: int
    scaling_factor: float
    open_clip: bool  # Stable Diffusion 2: text encoder and linear projections
    scheduler: tuple[str, dict[str, Any]]
    unet: dict[str, Any]


KINDS = {
    "x4-upscaler": Published(
        "StableDiffusionUpscalePipeline", 7, (32, 32, 32, 64), 8, (PLAIN, CROSS, CROSS, CROSS), 3, 0.08333, True,
        ("DDIMScheduler", {**X4_BETAS, "prediction_type": "v_prediction", "clip_sample": False,
                           "set_alpha_to_one": False, "steps_offset": 1}),
        {"num_class_embeds": 1000, "only_cross_attention": (True, True, True, False)},
    ),
    "sd2-inpainting": Published(
        "StableDiffusionInpaintPipeline", 9, (64, 64, 64, 64), (1, 1, 1, 1), (CROSS, CROSS, CROSS, PLAIN), 4, 0.18215,
        True, ("PNDMScheduler", {**SD_BETAS, **PNDM}), {},
    ),
    "sd15-inpainting": Published(
        "StableDiffusionInpaintPipeline", 9, (32, 32, 64, 64), 8, (CROSS, CROSS, CROSS, PLAIN), 4, 0.18215,
        False, ("PNDMScheduler", {**SD_BETAS, **PNDM}), {},
    ),
    "sd15": Published(
        "StableDiffusionPipeline", 4, (32, 32, 64, 64), 8, (CROSS, CROSS, CROSS, PLAIN), 4, 0.18215,
        False, ("PNDMScheduler", {**SD_BETAS, **PNDM}), {},
    ),
}  # fmt: skip


def write_pipeline(folder: Path, kind: str, **saving: Any) -> Path:
    """A diffusers folder. ``saving``: of ``save_pretrained``: ``variant`` (in half precision), ``max_shard_size``."""
    published = KINDS[kind]
    torch.manual_seed(sorted(KINDS).index(kind))
    write_tokenizer(folder / "tokenizer", published.open_clip)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    networks: dict[str, nn.Module] = {
        "unet": _unet(published),
        "vae": _autoencoder(published),
        "text_encoder": _text_encoder(len(tokenizer), published.open_clip),
    }
    for network in networks.values():
        _stir(network)
        if "variant" in saving:
            network.half()
    _sharpen(networks["vae"])
    parts: dict[str, Any] = {"scheduler": getattr(diffusers, published.scheduler[0])(**published.scheduler[1])}
    if kind == "x4-upscaler":
        parts |= {"low_res_scheduler": diffusers.DDPMScheduler(**X4_BETAS), "max_noise_level": 350}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, published.pipeline)(**networks, tokenizer=tokenizer, **parts)
    pipeline.save_pretrained(folder, **saving)
    shutil.rmtree(folder / "tokenizer")  # in today's form
    write_tokenizer(folder / "tokenizer", published.open_clip)
    _rename(folder / "text_encoder", lambda key: f"text_model.{key.removeprefix('text_model.')}")
    if "max_shard_size" not in saving:  # diffusers does not know the older names in shards; nobody published such
        _rename(folder / "vae", _older_attention)
    return folder


def pipeline_of(folder: Path, name: str | None = None, **parts: Any) -> Any:
    """diffusers' own pipeline of a folder, its sampler made deterministic, without a progress bar."""
    kind = getattr(diffusers, name) if name else DiffusionPipeline
    pipeline = kind.from_pretrained(folder, **parts)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_single_file(path: Path, folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """The checkpoint of ``folder`` as one file in the CompVis layout, with its schedule's buffers."""
    published, pipeline = KINDS[kind], pipeline_of(folder)
    state = {
        f"model.diffusion_model.{unet_key(key, published)}": value for key, value in pipeline.unet.state_dict().items()
    }
    for key, value in pipeline.vae.state_dict().items():
        new = vae_key(key, published)
        conv = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new)  # 1x1 convolutions there
        state[f"first_stage_model.{new}"] = value[:, :, None, None] if conv else value
    text = {key.removeprefix("text_model."): value for key, value in pipeline.text_encoder.state_dict().items()}
    if published.open_clip:
        state |= {f"cond_stage_model.model.{key}": value for key, value in _to_open_clip(text).items()}
    else:
        state |= {f"cond_stage_model.transformer.text_model.{key}": value for key, value in text.items()}
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    state |= {"betas": pipeline.scheduler.betas, "alphas_cumprod": pipeline.scheduler.alphas_cumprod}
    if kind == "x4-upscaler":
        state["low_scale_model.betas"] = pipeline.low_res_scheduler.betas
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    return path


def unet_key(key: str, published: Published) -> str:
    """diffusers' name of a UNet weight -> CompVis': twelve input and twelve output blocks, three to a level."""
    fixed = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0",
        "conv_out": "out.2", "conv_in": "input_blocks.0.0", "class_embedding": "label_emb",
    }  # fmt: skip
    for old, new in fixed.items():
        if key.startswith(f"{old}."):
            return key.replace(old, new, 1)
    resnet = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    key = re.sub(r"(resnets\.\d\.)(\w+)", lambda m: m[1] + resnet[m[2]], key)
    if key.startswith("mid_block"):
        key = re.sub(r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", key)
        return key.replace("mid_block.attentions.0", "middle_block.1")
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", key)
    assert found, key
    side, level, layer, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if layer == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op.{rest.removeprefix('conv.')}"
    if layer == "upsamplers":  # stands after the attention, where there is one
        attends = published.blocks[-1 - level] == CROSS
        return f"output_blocks.{3 * level + 2}.{2 if attends else 1}.{rest}"
    block = f"input_blocks.{3 * level + index + 1}" if side == "down" else f"output_blocks.{3 * level + index}"
    return f"{block}.{0 if layer == 'resnets' else 1}.{rest}"


def vae_key(key: str, published: Published) -> str:
    """diffusers' name of an autoencoder's weight -> CompVis'; its decoder counts levels from the highest resolution."""
    last = published.autoencoder_levels - 1
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    key = re.sub(r"mid_block\.attentions\.0\.(to_out\.0|\w+)", lambda m: f"mid.attn_1.{attention[m[1]]}", key)
    key = re.sub(r"down_blocks\.(\d)", r"down.\1", key)
    key = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{last - int(m[1])}", key)
    return re.sub(r"resnets\.(\d)", r"block.\1", key).replace("samplers.0.", "sample.")


def write_tokenizer(folder: Path, open_clip: bool) -> None:
    """CLIP's tokenizer in the published files: every byte is in its vocabulary, and a few pairs are merged."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    merges = ["c a", "ca t</w>", "d o", "do g</w>", "t h", "th e</w>"]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}

    def special(content: str, kind: dict[str, str] | None = None) -> dict[str, Any]:
        flags = {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {**(kind or {}), **flags}

    start, end, pad = "<|startoftext|>", "<|endoftext|>", "!" if open_clip else "<|endoftext|>"
    names = {"bos_token": start, "eos_token": end, "unk_token": end}
    added = {name: special(content, {"__type": "AddedToken"}) for name, content in names.items()}
    files: dict[str, dict[str, Any]] = {
        "vocab.json": vocabulary,
        "special_tokens_map.json": {name: special(content) for name, content in names.items()} | {"pad_token": pad},
        "tokenizer_config.json": {
            **added, "pad_token": pad, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer",
            "add_prefix_space": False, "do_lower_case": True, "errors": "replace",
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def _unet(published: Published) -> UNet2DConditionModel:
    down, up = zip(*published.blocks, strict=True)
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=published.in_channels,
        out_channels=4,
        block_out_channels=published.widths,
        attention_head_dim=published.heads,
        down_block_types=down,
        up_block_types=up[::-1],
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=published.open_clip,
        **published.unet,
    )


def _autoencoder(published: Published) -> AutoencoderKL:
    levels = published.autoencoder_levels
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(32,) * levels,
        layers_per_block=2,
        scaling_factor=published.scaling_factor,
    )


def _text_encoder(vocabulary: int, open_clip: bool) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=OPEN_CLIP_DEPTH if open_clip else DEPTH,
            num_attention_heads=TEXT_WIDTH // 64,
            hidden_act="gelu" if open_clip else "quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
    )


def _stir(network: nn.Module) -> None:
    """Move every weight a little, so that none is at the zero or one where it began."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.02)


def _sharpen(autoencoder: Any) -> None:
    """A posterior that is almost a point, as the published ones: a draw from it is its mean."""
    with torch.no_grad():
        autoencoder.quant_conv.weight[4:].zero_()
        autoencoder.quant_conv.bias[4:].fill_(-30)


def _rename(folder: Path, new: Callable[[str], str]) -> None:
    """Rename the weights of a part, in its files and in the index of its shards."""
    for path in folder.glob("*.safetensors"):
        save_file({new(key): value for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    for path in folder.glob("*.index*.json"):
        index = json.loads(path.read_text())
        index["weight_map"] = {new(key): file for key, file in index["weight_map"].items()}
        path.write_text(json.dumps(index))


def _older_attention(key: str) -> str:
    """The names under which the published autoencoders hold their attention."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return re.sub(r"(attentions\.0\.)(to_q|to_k|to_v|to_out\.0)", lambda m: m[1] + older[m[2]], key)


def _to_open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of open_clip's text tower, its last layer (which Stable Diffusion 2 does not read) included."""
    state = {
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
        "text_projection": torch.randn(TEXT_WIDTH, TEXT_WIDTH),
        "logit_scale": torch.tensor(4.6),
    }
    names = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }  # fmt: skip
    for layer in range(OPEN_CLIP_DEPTH + 1):
        source, target = f"encoder.layers.{min(layer, OPEN_CLIP_DEPTH - 1)}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            for old, new in names.items():
                state[f"{target}.{new}.{kind}"] = text[f"{source}.{old}.{kind}"] + (layer == OPEN_CLIP_DEPTH)
            joined = torch.cat([text[f"{source}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"])
            state[f"{target}.attn.in_proj_{kind}"] = joined
    return state
