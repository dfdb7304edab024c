"""Training with LoRA: what is trained and saved, resuming, refused settings, and infer.py on what a run made."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

import infer
import train
from ldm_video.core.errors import UserError
from ldm_video.models.inflate import VideoUNet, inflate
from ldm_video.models.lora import LoRA, add_adapters, open_adapted, read_adapter
from ldm_video.models.open_model import FRAME_BY_FRAME, open_model
from ldm_video.models.temporal import TemporalConfig
from ldm_video.pipeline.arguments import DEFAULTS, parse_arguments
from ldm_video.pipeline.job import identify
from ldm_video.pipeline.journal import changes
from ldm_video.pipeline.settings import read_config
from ldm_video.restoration import prepare
from tests.cli_support import call, read_pixels, write_tiny_bundle
from tests.lora_support import (
    ALL,
    HERE,
    X4,
    finish_runs,
    last_line,
    plain_unet,
    run_denoiser,
    write_checkpoints,
    write_data,
)
from tests.model_support import unet_config
from tests.train_support import differing, logged


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoints(tmp_path_factory)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> list[str]:
    return write_data(tmp_path_factory, write_video)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> dict[str, Path]:
    """Two finished runs of train.py: with adapters alone, and with new layers beside them."""
    return finish_runs(tmp_path_factory, write_video)


def saved_state(run: Path) -> dict[str, Tensor]:
    """The denoiser's UNet in a run's last checkpoint: the averaged weights."""
    found = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=False)["state_dict"]
    prefix = "model.denoiser.unet."
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


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
