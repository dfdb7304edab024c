"""LoRA files that are damaged, of another kind, or made for another model are refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import infer
from ldm_video.core.errors import UserError
from ldm_video.models.lora import merge_adapter, read_adapter
from ldm_video.models.open_model import open_model
from tests.cli_support import call
from tests.lora_support import finish_runs, last_line, write_checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> dict[str, Path]:
    """Two finished runs of train.py: with adapters alone, and with new layers beside them."""
    return finish_runs(tmp_path_factory, write_video)


def spoil(kind: str, folder: Path, source: Path) -> Path:
    """A copy of the adapter ``source``, of which something is wrong; what to give to ``--lora``."""
    shutil.copytree(source, folder)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    state, facts = load_file(weights), json.loads(config.read_text())
    first = sorted(state)[0]
    match kind:
        case "no such folder":
            return folder / "none"
        case "empty folder":
            weights.unlink()
        case "several files":
            weights.rename(folder / "a.safetensors")
            shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
        case "pickle":
            weights.rename(folder / "adapter_model.bin")
        case "cut short":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no config":
            config.unlink()
        case "broken config":
            config.write_text("{")
        case "another kind":
            config.write_text(json.dumps({**facts, "peft_type": "LOKR"}))
        case "dora":
            config.write_text(json.dumps({**facts, "use_dora": True}))
        case "pissa_niter_4" | "corda" | "OLoRA" | "lora_ga" | "loftq":
            config.write_text(json.dumps({**facts, "init_lora_weights": kind}))
        case "a model":
            save_file({"conv_in.weight": torch.zeros(2, 2)}, weights)
        case "magnitudes":
            save_file(state | {first.replace("lora_A", "lora_magnitude_vector"): torch.ones(3)}, weights)
        case "half of a pair":
            save_file({key: value for key, value in state.items() if key != first}, weights)
        case "two ranks":
            save_file(state | {first: state[first][:1].clone()}, weights)
        case "no numbers":
            return Path(f"{folder}:nan")
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no such folder", "do not exist"),
        ("empty folder", "do not exist"),
        ("several files", "2 .safetensors files"),
        ("pickle", "is a pickle"),
        ("cut short", "not a whole safetensors file"),
        ("no config", "has no adapter_config.json"),
        ("broken config", "not valid JSON"),
        ("another kind", "another kind than plain LoRA"),
        ("dora", "another kind than plain LoRA"),
        *((start, "save it as plain LoRA") for start in ("pissa_niter_4", "corda", "OLoRA", "lora_ga", "loftq")),
        ("a model", "holds no plain LoRA"),
        ("magnitudes", "not of a plain LoRA"),
        ("half of a pair", "two factors of one rank"),
        ("two ranks", "two factors of one rank"),
        ("no numbers", "not a finite number"),
    ],
)
def test_bad_files(kind: str, words: str, runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        read_adapter(str(spoil(kind, tmp_path / "bad", runs["adapters"] / "lora")))


@pytest.mark.parametrize("kind", ["LoHa", "DoRA", "text alone"])
def test_files_of_other_kinds(kind: str, tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {f"{layer}.lora_down.weight": torch.zeros(2, 32), f"{layer}.lora_up.weight": torch.zeros(32, 2)}
    state = {
        "LoHa": {f"{layer}.hada_w1_a": torch.zeros(32, 2)},
        "DoRA": pair | {f"{layer}.dora_scale": torch.ones(1, 32)},
        "text alone": {
            key.replace("unet_down_blocks_0", "te_text_model_encoder_layers_0"): v for key, v in pair.items()
        },
    }[kind]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors"):
        read_adapter(str(tmp_path / "other.safetensors"))


def test_the_wrong_base_is_named_in_one_line(
    runs: dict[str, Path], checkpoints: dict[str, Path], tiny_video: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    made_for = str(checkpoints["x4-upscaler"])
    arguments = ("--input", tiny_video, "--output", tmp_path / "hd.mkv", "--lora", runs["adapters"] / "lora")
    for more in ((), ("--model", checkpoints["sd15"])):
        assert call(infer, *arguments, *more) == 2
        line = last_line(capsys)
        assert line.startswith("error: ") and made_for in line and "this model" in line
    assert not (tmp_path / "hd.mkv").exists()


def test_a_wrong_shape_leaves_the_model_as_it_was(checkpoints: dict[str, Path], runs: dict[str, Path]) -> None:
    denoiser, adapter = open_model(checkpoints["x4-upscaler"]).denoiser, read_adapter(str(runs["adapters"] / "lora"))
    path, (down, up, factor) = list(adapter.pairs.items())[-1]
    wrong = replace(adapter, pairs={**adapter.pairs, path: (down[:, :-1], up, factor)})
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    with pytest.raises(UserError, match=rf"'{path}.weight' is \d+ x \d+, \d+ x \d+ in this model"):
        merge_adapter(denoiser, wrong)
    assert all(torch.equal(value, before[key]) for key, value in denoiser.state_dict().items())
