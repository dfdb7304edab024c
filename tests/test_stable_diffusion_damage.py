"""Damaged and foreign Stable Diffusion checkpoints: what is wrong is named, and a pickle stays unopened."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from ldm_video.core.errors import UserError
from tests.sd_checkpoints import write_single_file
from tests.stable_diffusion_support import assert_same_weights, edit, edit_json, open_still, write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory)


@pytest.fixture
def x4(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folders["x4-upscaler"], tmp_path / "x4"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


UNET, KEY = "unet/diffusion_pytorch_model.safetensors", "mid_block.resnets.0.conv1.bias"
DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing key": (lambda f: edit(f / UNET, lambda s: s.pop(KEY)), ["unet", KEY, "missing"]),
    "unexpected key": (lambda f: edit(f / UNET, lambda s: s.update(ghost=torch.zeros(1))), ["unet", "ghost"]),
    "another shape": (lambda f: edit(f / UNET, lambda s: s.update({KEY: torch.zeros(5)})), ["unet", KEY, "shape"]),
    "pickles only": (lambda f: (f / UNET).rename(f / "unet/diffusion_pytorch_model.bin"), ["unet", "safetensors"]),
    "cut off": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-9]), ["unet", "cannot be read"]),
    "no config": (lambda f: (f / "vae/config.json").unlink(), ["vae", "config.json"]),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), ["has no scheduler_config.json"]),
    "unknown prediction": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", prediction_type="velocity"),
        ["scheduler/scheduler_config.json", "prediction_type 'velocity'", "v_prediction"],
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), ["has no tokenizer", "text encoder", "not whole"]),
    "cut vocabulary": (lambda f: cut(f / "tokenizer/vocab.json"), ["tokenizer", "copy it again"]),
    "cut merges": (lambda f: cut(f / "tokenizer/merges.txt"), ["tokenizer", "copy it again"]),
    "damaged index": (lambda f: (f / "model_index.json").write_text("{"), ["model_index.json", "not valid JSON"]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(x4: Path, damage: str) -> None:
    change, words = DAMAGES[damage]
    change(x4)
    with pytest.raises(UserError) as caught:
        open_still(x4)
    for word in [str(x4), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model."])
def test_leftovers_of_a_single_file_are_named(prefix: str, folders: dict[str, Path], tmp_path: Path) -> None:
    file = write_single_file(tmp_path / "sd.safetensors", folders["sd15"], "sd15")
    edit(file, lambda state: state.update({f"{prefix}ghost.weight": torch.zeros(1)}))
    with pytest.raises(UserError, match="ghost"):
        open_still(file)
    edit(file, lambda state: [state.pop(key) for key in [*state] if key.startswith(prefix) and key.endswith("2.bias")])
    with pytest.raises(UserError, match=r"missing|ghost"):
        open_still(file)


MISSING = {
    "x4-upscaler": [
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.in_layers.2.weight",
        "model.diffusion_model.input_blocks.5.0.in_layers.2.weight",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
        "model.diffusion_model.input_blocks.4.1.proj_in.weight",
        "model.diffusion_model.out.2.weight",
        "model.diffusion_model.label_emb.weight",
        "cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.weight",
    ],
    "sd15": [
        "first_stage_model.post_quant_conv.weight",
        "first_stage_model.encoder.down.1.block.0.conv2.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    ],
}


@pytest.mark.parametrize("kind", MISSING)
def test_a_weight_from_which_a_shape_is_read(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    file = write_single_file(tmp_path / "sd.safetensors", folders[kind], kind)
    whole = load_file(file)
    for missing in MISSING[kind]:
        save_file({key: value for key, value in whole.items() if key != missing}, file)
        with pytest.raises(UserError, match=f"'{re.escape(missing)}' missing") as caught:
            open_still(file)
        assert str(file) in str(caught.value)


def test_a_weight_that_the_converters_put_none_for(folders: dict[str, Path], tmp_path: Path) -> None:
    file = write_single_file(tmp_path / "sd.safetensors", folders["sd15"], "sd15")
    edit(file, lambda state: state.pop("model.diffusion_model.input_blocks.3.0.op.bias"))
    with pytest.raises(UserError, match=r"'down_blocks.0.downsamplers.0.conv.bias' missing"):
        open_still(file)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_damaged_tokenizer_beside_a_file(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sd15"] / "tokenizer", tmp_path / "tokenizer")
    file = write_single_file(tmp_path / "sd.safetensors", folders["sd15"], "sd15")
    cut(tmp_path / "tokenizer" / name)
    with pytest.raises(UserError, match=f"{tmp_path / 'tokenizer'} has no whole tokenizer"):
        open_still(file)


def test_files_of_no_known_kind(folders: dict[str, Path], tmp_path: Path) -> None:
    file = write_single_file(tmp_path / "sd.safetensors", folders["sd2-inpainting"], "sd2-inpainting")
    entrance = "model.diffusion_model.input_blocks.0.0.weight"
    edit(file, lambda state: state.update({entrance: state[entrance][:, :4].contiguous()}))
    with pytest.raises(UserError, match=r"4 input channels with OpenCLIP .* folder"):  # epsilon or v: it does not say
        open_still(file)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="CompVis"):
        open_still(tmp_path / "other.safetensors")


def test_a_pickle_is_refused_with_the_line_that_converts_it(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sd15"] / "tokenizer", tmp_path / "tokenizer")
    file = write_single_file(tmp_path / "file.safetensors", folders["sd15"], "sd15")
    # As Lightning 1 wrote it: the callback's class is a key.
    callbacks = {ModelCheckpoint: {"monitor": "val/loss", "best_model_score": torch.tensor(0.1)}}
    torch.save({"state_dict": load_file(file), "global_step": 3, "callbacks": callbacks}, tmp_path / "sd.ckpt")
    with pytest.raises(UserError, match="pickle") as caught:
        open_still(tmp_path / "sd.ckpt")
    command = shlex.split(str(caught.value).partition("with: ")[2])
    assert command[:2] == ["python", "-c"]
    assert "weights_only=True" in command[2]
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=tmp_path)
    assert_same_weights(open_still(tmp_path / "sd.safetensors"), open_still(file))
