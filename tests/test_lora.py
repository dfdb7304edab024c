"""LoRA: adapters that begin as nothing, train alone, lie in a small file that others read, and merge into the weights.

What a merged file must give is taken from peft and diffusers, which load the same file into the plain 2-D UNet.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

import infer
import train
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
from ldm_video.models.temporal import TemporalConfig
from ldm_video.pipeline.arguments import DEFAULTS, parse_arguments
from ldm_video.pipeline.job import identify
from ldm_video.pipeline.journal import changes
from ldm_video.pipeline.settings import read_config
from ldm_video.restoration import prepare
from tests.cli_support import ROOT, call, read_pixels, write_tiny_bundle
from tests.model_support import perturb, unet_config
from tests.sd_checkpoints import TEXT_WIDTH, write_pipeline
from tests.train_support import differing, logged

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
X4 = ROOT / "configs" / "train" / "sd" / "x4_upscaler.yaml"
HERE = [
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=1",
    "checkpoint_every=1", "logger=csv", "watch=null", "data.workers=0", "data.frames=2", "data.size=64",
    "task.warmup=2", "optimizer.lr=0.01", "ema=0.5", "lora.rank=2",
]  # fmt: skip
ALL = ["lora.full=[temporal,conv_in]", "trainer.precision=32-true"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: write_pipeline(folder / kind, kind) for kind in ("x4-upscaler", "sd15")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    write_video(folder / "clips" / "a.mp4", frames=4, size=(112, 128))
    return [f"data.root={folder / 'clips'}", f"data.cache={folder / 'cache'}"]


@pytest.fixture(scope="module")
def runs(checkpoints: dict[str, Path], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two finished runs of train.py: with adapters alone, and with new layers beside them."""
    folder, base = tmp_path_factory.mktemp("runs"), f"init_from={checkpoints['x4-upscaler']}"
    for name, more in {"adapters": [f"publish={folder / 'published'}"], "all": ALL}.items():
        arguments = ["--config", X4, *HERE, *data, base, *more, "trainer.max_steps=3", f"output={folder / name}"]
        assert call(train, *arguments) == 0
    return {name: folder / name for name in ("adapters", "all", "published")}


def run_denoiser(denoiser: VideoUNet) -> Tensor:
    """What it makes of one noisy clip of two frames."""
    generator = torch.Generator().manual_seed(0)
    config = denoiser.unet.config
    noisy = torch.randn(1, 2, config["in_channels"], 8, 16, generator=generator)
    text = torch.randn(1, 5, TEXT_WIDTH, generator=generator)
    with torch.no_grad():
        return denoiser(noisy, 500, text, None if config["num_class_embeds"] is None else torch.tensor([20]))


def stir(denoiser: VideoUNet) -> None:
    """Adapters as after much training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter_parameters(denoiser):
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def plain_unet(base: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(base / "unet")


def merged(base: Path, adapter: object) -> dict[str, Tensor]:
    """The weights of the plain UNet with an adapter merged in by us."""
    denoiser = inflate(plain_unet(base), FRAME_BY_FRAME)
    merge_adapter(denoiser, read_adapter(str(adapter)))
    return denoiser.unet.state_dict()


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def saved_state(run: Path) -> dict[str, Tensor]:
    """The denoiser's UNet in a run's last checkpoint: the averaged weights."""
    found = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=False)["state_dict"]
    prefix = "model.denoiser.unet."
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


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


# Training.


def test_only_adapters_are_trained_and_saved(runs: dict[str, Path], checkpoints: dict[str, Path]) -> None:
    """From x4_upscaler.yaml as it is: bfloat16, DDP, checkpointing, a moving average; and a spatial part that waits."""
    run, base = runs["adapters"], open_model(checkpoints["x4-upscaler"], temporal=FRAME_BY_FRAME)
    losses = logged(run)
    assert sorted(losses) == [0, 1, 2] and all(map(math.isfinite, losses.values()))
    state = saved_state(run)
    frozen = {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}
    before = base.denoiser.unet.state_dict()
    assert frozen.keys() == before.keys()
    assert all(torch.equal(frozen[key], before[key]) for key in before)
    ups = [value for key, value in state.items() if ".lora_B." in key]
    assert ups and all(value.any() for value in ups)
    assert {path.name for path in run.iterdir()} >= {"lora", "checkpoints"} and not (run / "bundle").exists()
    stored = load_file(run / "lora" / "adapter_model.safetensors")
    assert {key for key in stored if ".lora_" not in key} == set()
    assert len(stored) == 2 * len(ups)
    half = load_file(runs["published"] / "adapter_model.safetensors")
    assert {value.dtype for value in half.values()} == {torch.float16}
    sizes = [sum(f.stat().st_size for f in folder.iterdir()) for folder in (run / "lora", runs["published"])]
    base_size = sum(p.numel() * p.element_size() for p in base.parameters())
    assert sizes[1] < sizes[0] < base_size / 10


def test_new_layers_trained_beside_the_adapters_come_back_with_them(
    runs: dict[str, Path], checkpoints: dict[str, Path]
) -> None:
    state, base = saved_state(runs["all"]), checkpoints["x4-upscaler"]
    before = open_model(base).denoiser.unet.state_dict()
    after = open_adapted(base, read_adapter(str(runs["all"] / "lora"))).denoiser.unet.state_dict()
    assert after.keys() == before.keys()
    for key, value in after.items():
        if ".temporal." in key or key.startswith("conv_in."):
            assert torch.equal(value, state[key]) and not torch.equal(value, before[key])
        elif ".to_" in key and key.endswith("weight"):
            path = key.removesuffix(".weight")
            down, up = (state[f"{path}.lora_{factor}.default.weight"] for factor in "AB")
            torch.testing.assert_close(value, before[key] + 16 / 2 * up @ down)
        else:
            assert torch.equal(value, before[key])
    nothing = open_adapted(base, read_adapter(f"{runs['all'] / 'lora'}:0")).denoiser
    assert torch.equal(run_denoiser(nothing), run_denoiser(open_model(base, temporal=FRAME_BY_FRAME).denoiser))
    half = [run_denoiser(open_adapted(base, read_adapter(f"{runs['all'] / 'lora'}:0.5")).denoiser) for _ in range(2)]
    assert torch.equal(half[0], half[1])  # nothing is left of what new temporal layers draw at random


def test_a_run_that_is_resumed_gives_the_same_file(
    runs: dict[str, Path], checkpoints: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    base = f"init_from={checkpoints['x4-upscaler']}"
    arguments = ["--config", X4, *HERE, *data, base, *ALL, f"output={tmp_path / 'run'}"]
    for steps in (2, 3):  # the warm-up does not depend on where a run ends
        assert call(train, *arguments, f"trainer.max_steps={steps}") == 0
    resumed, straight = (
        load_file(run / "lora" / "adapter_model.safetensors") for run in (tmp_path / "run", runs["all"])
    )
    assert differing(resumed, straight) == []


def test_few_steps_with_adapters_leave_the_decoder_still(
    checkpoints: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    run, config = tmp_path / "run", X4.with_name("x4_few_step.yaml")
    small = ["task.pixel_from_step=1", "task.pixel_loss.perceptual=null", "task.pixel_loss.adversary.channels=8"]
    base = [f"init_from={checkpoints['x4-upscaler']}", f"output={run}", "trainer.max_steps=2"]
    assert call(train, "--config", config, *HERE, *data, *small, *base) == 0
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    codec = open_model(checkpoints["x4-upscaler"]).codec.state_dict()
    assert all(torch.equal(state[f"model.codec.{key}"], value) for key, value in codec.items())
    assert all(value.any() for key, value in state.items() if ".lora_B." in key)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["lora.rnk=2"], "unknown key 'lora.rnk'"),
        (["lora={ranks: 2}"], "unknown key 'lora.ranks'"),
        (["lora.rank=0"], "rank is a whole number from 1 up"),
        (["lora.rank=2.5"], "rank is a whole number from 1 up"),
        (["lora.rank=2", "lora.alpha=0"], "alpha is a whole number from 1 up"),
        (["lora.rank=2", "lora.full=[conv_out]"], "full takes temporal and conv_in, not 'conv_out'"),
        (["lora.rank=2", "lora.temporal=true", "lora.full=[temporal]"], "not both"),
    ],
)
def test_bad_settings(
    options: list[str], words: str, checkpoints: dict[str, Path], data: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["--config", X4, *data, f"init_from={checkpoints['x4-upscaler']}", f"output={tmp_path / 'run'}"]
    assert call(train, *arguments, *options, "--dry-run") == 2
    assert words in last_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("start", ["init_from=null", "model=null"])
def test_a_stage_of_the_codec_or_a_new_model_is_refused(
    start: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = {"init_from=null": "denoiser", "model=null": "codec"}[start]
    file = tmp_path / "lora.yaml"
    base = write_tiny_bundle(tmp_path / "bundle")
    config = {"defaults": [str(X4.parents[1] / "tiny" / f"{stage}.yaml")]}
    config |= {"init_from": str(base), "lora": {"target": "ldm_video.models.lora.LoRA", "rank": 2}}
    if stage == "denoiser":
        config["model"] = {"target": "ldm_video.models.video_model.VideoModel"}
    OmegaConf.save(config, file)
    assert call(train, "--config", file, *data, start, "watch=null", "--dry-run") == 2
    assert "give init_from=MODEL and a stage that trains it" in last_line(capsys)


def test_a_model_without_such_layers_is_refused(checkpoints: dict[str, Path]) -> None:
    new, none = (inflate(plain_unet(checkpoints["sd15"]), layers) for layers in (TemporalConfig(), FRAME_BY_FRAME))
    for denoiser, lora in {new: LoRA(rank=2, temporal=True), none: LoRA(rank=2, full=["temporal"])}.items():
        with pytest.raises(UserError, match=r"no (trained )?temporal layers"):
            add_adapters(denoiser, lora)
    plain = VideoUNet(UNet2DConditionModel(**unet_config(4, 4)), FRAME_BY_FRAME)
    with pytest.raises(UserError, match="no spatial attention to adapt"):
        add_adapters(plain, LoRA(rank=2))


# infer.py.


def test_infer_takes_as_much_of_it_as_is_asked_for(
    runs: dict[str, Path], checkpoints: dict[str, Path], write_video: Callable[..., Path], tmp_path: Path
) -> None:
    clip, numbers = write_video(tmp_path / "low.mp4", frames=2, size=(16, 32)), iter(range(99))

    def upscaled(*options: object) -> np.ndarray:
        output = tmp_path / f"{next(numbers)}.mkv"
        fast = ("--steps", 2, "--device", "cpu", "--codec", "ffv1", "colour=none", "--overwrite")
        model = checkpoints["x4-upscaler"]
        assert call(infer, "--input", clip, "--output", output, "--model", model, *fast, *options) == 0
        return read_pixels(output)

    plain = upscaled()
    for name in ("adapters", "all"):
        folder = runs[name] / "lora"
        whole = upscaled("--lora", folder)
        assert np.abs(whole - plain).max() > 2
        np.testing.assert_array_equal(upscaled("--lora", f"{folder}:0"), plain)
    np.testing.assert_array_equal(upscaled(f"lora={folder / 'adapter_model.safetensors'}"), whole)
    assert np.abs(upscaled("--lora", f"{folder}:0.5") - whole).max() > 1


def test_work_kept_with_another_lora_is_another_job(
    runs: dict[str, Path],
    checkpoints: dict[str, Path],
    tiny_video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def identity(*options: str) -> dict[str, Any]:
        files = {"--input": tiny_video, "--output": tmp_path / "hd.mkv", "--model": checkpoints["x4-upscaler"]}
        monkeypatch.setattr(
            sys, "argv", ["infer.py", *(str(word) for pair in files.items() for word in pair), *options]
        )
        arguments = parse_arguments()
        _, job, restorer, part = prepare(arguments, read_config(arguments, DEFAULTS))
        return identify(job, restorer, part)

    folder = runs["adapters"] / "lora"
    whole = identity("--lora", str(folder))
    assert changes(whole, identity("--lora", f"{folder}:1")) == []
    for other in (["--lora", f"{folder}:0.5"], ["--lora", str(runs["published"])], []):
        assert changes(whole, identity(*other)) == ["lora"]


# Bad files.


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
