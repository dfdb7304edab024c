"""Models in other forms: Stable Diffusion -> bundle -> diffusers, from folders and single files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import ldm_video.convert as convert
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.open_model import open_model
from tests.cli_support import TINY_MODEL, call, files_below
from tests.convert_support import write_models
from tests.model_support import perturb, rand_pixels
from tests.sd_checkpoints import KINDS, pipeline_of, write_pipeline, write_single_file

SHARED = ("vae", "unet", "text_encoder")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory)


def run_pipeline(pipeline: Any) -> Tensor:
    """``3 H W``, with what the kind of pipeline needs."""
    arguments: dict[str, Any] = {"height": 64, "width": 64}
    image = rand_pixels(1, 3, 64, 64) / 2 + 0.5
    if "Upscale" in type(pipeline).__name__:
        arguments = {"image": F.avg_pool2d(image, 4), "noise_level": 30}
    elif "Inpaint" in type(pipeline).__name__:
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 16:40, 8:48] = 1
        arguments |= {"image": image, "mask_image": mask}
    generator = torch.Generator().manual_seed(3)
    return pipeline(
        "the cat", negative_prompt="dog", num_inference_steps=2, generator=generator, output_type="pt", **arguments
    ).images[0]


def assert_same_parts(one: Any, two: Any) -> None:
    for name in SHARED:
        first, second = (getattr(pipeline, name).state_dict() for pipeline in (one, two))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_text_encoder_of_a_single_file_goes_out_under_the_published_names(
    root: Path, tmp_path: Path, dtype: str
) -> None:
    file = write_single_file(tmp_path / "sd.safetensors", root / "sd15", "sd15")
    shutil.copytree(root / "sd15" / "tokenizer", tmp_path / "tokenizer")
    expected = load_file(root / "sd15" / "text_encoder" / "model.safetensors")
    assert call(convert, "to-bundle", file, tmp_path / "bundle", "--head-dim", 0, "--dtype", dtype) == 0
    assert call(convert, "to-diffusers", tmp_path / "bundle", tmp_path / "back") == 0
    assert call(convert, "to-diffusers", file, tmp_path / "straight") == 0
    for folder in ("bundle/text", "back/text_encoder", "straight/text_encoder"):
        written = load_file(tmp_path / folder / "model.safetensors")
        assert written.keys() == expected.keys()
        for key, value in written.items():
            exact = dtype == "fp32" or folder.startswith("straight")
            torch.testing.assert_close(value.float(), expected[key] if exact else expected[key].half().float())


@pytest.mark.parametrize("kind", KINDS)
def test_stable_diffusion_to_a_bundle_and_back(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write_pipeline(tmp_path / "sd", kind)
    assert call(convert, "to-bundle", folder, tmp_path / "bundle") == 0
    assert call(convert, "to-diffusers", tmp_path / "bundle", tmp_path / "back") == 0
    before, after = pipeline_of(folder), pipeline_of(tmp_path / "back")
    assert type(after) is type(before)
    assert_same_parts(before, after)
    assert after.unet.config["in_channels"] == KINDS[kind].in_channels
    images = [run_pipeline(pipeline) for pipeline in (before, after)]
    assert images[0].std() > 0.02
    assert torch.equal(*images)
    if kind == "x4-upscaler":
        assert after.config["max_noise_level"] == 350
        assert torch.equal(after.low_res_scheduler.betas, before.low_res_scheduler.betas)
    channels = open_model(tmp_path / "bundle").denoiser.unet.conv_in.in_channels
    said = capsys.readouterr().out
    assert f"input channels {KINDS[kind].in_channels} to {channels - 1} of {channels} (all zero" in said
    assert "temporal layers" in said
    assert "they are new" in said
    assert files_below(tmp_path) & {"bundle", "back", "sd"} == {p.name for p in tmp_path.iterdir()}  # no leftovers


def test_a_single_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").symlink_to(root / "sd15/tokenizer")
    file = write_single_file(tmp_path / "sd.safetensors", root / "sd15", "sd15")
    assert call(convert, "to-bundle", file, tmp_path / "bundle", "--head-dim", 0) == 0
    assert not list(load_bundle(tmp_path / "bundle").denoiser.temporal_parameters())
    assert call(convert, "to-diffusers", tmp_path / "bundle", tmp_path / "back") == 0
    back = pipeline_of(tmp_path / "back")
    assert_same_parts(back, pipeline_of(root / "sd15"))
    assert back.unet.config["sample_size"] == 64  # the file does not tell, and diffusers needs it


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_dtype(name: str, dtype: torch.dtype, root: Path, tmp_path: Path) -> None:
    assert call(convert, "to-bundle", root / "sd15", tmp_path / "half", "--dtype", name, "--head-dim", 16) == 0
    for part in ("denoiser", "codec", "text"):
        half, whole = (
            load_file(folder / part / "model.safetensors") for folder in (tmp_path / "half", root / "bundle")
        )
        spatial = [key for key, value in whole.items() if value.is_floating_point() and ".temporal." not in key]
        assert len(spatial) > 10
        assert all(torch.equal(half[key], whole[key].to(dtype)) for key in spatial)


def test_what_was_trained_is_not_lost_in_silence(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_bundle(root / "bundle")
    perturb(model.denoiser, 0.01)
    save_bundle(model, tmp_path / "trained")
    assert call(convert, "to-diffusers", tmp_path / "trained", tmp_path / "back") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "input channels" in line and "trained" in line]
    assert [line for line in lines if "temporal layers" in line and "trained" in line]
    weight = pipeline_of(tmp_path / "back").unet.conv_in.weight
    assert torch.equal(weight, model.denoiser.unet.conv_in.weight[:, :4])


def test_overwriting_a_model(root: Path, tmp_path: Path) -> None:
    save_bundle(load_bundle(root / "bundle"), tmp_path / "out")
    assert call(convert, "to-diffusers", tmp_path / "out", tmp_path / "out", "--overwrite") == 0
    assert_same_parts(pipeline_of(tmp_path / "out"), pipeline_of(root / "sd15"))
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_the_largest_seed(tmp_path: Path) -> None:
    assert call(convert, "fresh", TINY_MODEL, tmp_path / "fresh", "--seed", 2**63 - 1) == 0
