"""Opening Stable Diffusion checkpoints: every published form gives the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.diffusion.process import Process
from ldm_video.diffusion.sampler import draws_noise
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.open_model import find_model, open_model
from tests.model_support import clip_evidence, randn
from tests.sd_checkpoints import KINDS, pipeline_of, write_pipeline, write_single_file
from tests.stable_diffusion_support import assert_same_weights, edit, edit_json, open_still, write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory)


@pytest.fixture
def x4(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folders["x4-upscaler"], tmp_path / "x4"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_says_everything(kind: str, folders: dict[str, Path]) -> None:
    model, pipeline = open_still(folders[kind]), pipeline_of(folders[kind])
    schedules = [Process.from_scheduler(scheduler) for scheduler in (model.scheduler, pipeline.scheduler)]
    assert torch.equal(schedules[0].alphas, schedules[1].alphas)
    assert schedules[0].prediction == schedules[1].prediction == ("v" if kind == "x4-upscaler" else "epsilon")
    assert model.codec.scaling == KINDS[kind].scaling_factor
    assert model.codec.factor == pipeline.vae_scale_factor
    assert model.denoiser.unet.conv_in.weight[:, KINDS[kind].in_channels :].abs().max() == 0
    assert torch.equal(model.denoiser.unet.conv_in.weight[:, : KINDS[kind].in_channels], pipeline.unet.conv_in.weight)
    assert (model.sampling.noise_level, model.sampling.noise_limit) == (
        (20, 350) if kind == "x4-upscaler" else (None, None)
    )
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_is_its_folder(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders[kind]
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    model, whole = open_still(write_single_file(tmp_path / "sd.safetensors", folder, kind)), open_still(folder)
    assert_same_weights(model, whole)
    prompts = ["a cat", "the dog and the cat"]
    assert torch.equal(model.text(prompts), whole.text(prompts))
    ours, theirs = (dict(m.denoiser.unet.config) for m in (model, whole))
    for key in ("attention_head_dim", "down_block_types", "up_block_types", "use_linear_projection"):
        assert json.dumps(ours[key]) == json.dumps(theirs[key])
    assert (model.codec.scaling, model.layout, model.sampling) == (whole.codec.scaling, whole.layout, whole.sampling)
    for name in ("scheduler", "lowres_scheduler") if kind == "x4-upscaler" else ("scheduler",):
        one, two = (Process.from_scheduler(getattr(m, name)) for m in (model, whole))
        torch.testing.assert_close(one.alphas, two.alphas, atol=1e-6, rtol=0)
        assert one.prediction == two.prediction


def test_half_precision_in_a_single_file(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sd15"] / "tokenizer", tmp_path / "tokenizer")
    file = write_single_file(tmp_path / "sd.safetensors", folders["sd15"], "sd15", torch.float16)
    half, whole = open_still(file).state_dict(), open_still(folders["sd15"]).state_dict()
    assert all(
        torch.equal(value, whole[key].half().float()) for key, value in half.items() if value.is_floating_point()
    )


@pytest.mark.parametrize("kind", ["x4-upscaler", "sd2-inpainting"])
def test_a_file_that_was_made_from_a_folder(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """It has no 24th block of OpenCLIP, which is in the published files and read by nobody."""
    shutil.copytree(folders[kind] / "tokenizer", tmp_path / "tokenizer")
    file = write_single_file(tmp_path / "sd.safetensors", folders[kind], kind)
    edit(file, lambda state: [state.pop(key) for key in [*state] if ".resblocks.23." in key])
    model, whole = open_still(file), open_still(folders[kind])
    assert_same_weights(model, whole)
    assert torch.equal(model.text(["a cat"]), whole.text(["a cat"]))


@pytest.mark.parametrize("how", ["half", "absent"])
@pytest.mark.parametrize("kind", ["x4-upscaler", "sd15"])
def test_betas_that_a_single_file_does_not_tell(kind: str, how: str, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[kind] / "tokenizer", tmp_path / "tokenizer")
    file = write_single_file(tmp_path / "sd.safetensors", folders[kind], kind)

    def spoil(state: dict[str, Tensor]) -> None:
        for name in ("betas", "low_scale_model.betas"):
            if name in state:
                state[name] = state[name].half()
                if how == "absent":
                    del state[name]

    edit(file, spoil)
    model, whole = open_still(file), open_still(folders[kind])
    for name in ("scheduler", "lowres_scheduler") if kind == "x4-upscaler" else ("scheduler",):
        one, two = (Process.from_scheduler(getattr(m, name)) for m in (model, whole))
        torch.testing.assert_close(one.alphas, two.alphas, atol=1e-6, rtol=0)
        assert one.prediction == two.prediction
    assert (model.layout, model.sampling) == (whole.layout, whole.sampling)


@pytest.mark.parametrize(("kind", "scaling"), [("x4-upscaler", 0.08333), ("sd15", 0.18215)])
def test_an_early_autoencoder_without_a_scaling_factor(
    kind: str, scaling: float, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / kind))
    edit_json(folder / "vae/config.json", remove="scaling_factor")
    model = open_still(folder)
    assert model.codec.scaling == model.codec.config["scaling_factor"] == scaling
    edit_json(folder / "vae/config.json", scaling_factor=0.5)  # what is told holds
    assert open_still(folder).codec.scaling == 0.5


def test_early_schedulers(x4: Path) -> None:
    """Options that no scheduler has today; and offset and clipping, which early configs had wrong."""
    whole = open_still(x4)
    for name in ("scheduler", "low_res_scheduler"):
        edit_json(x4 / name / "scheduler_config.json", tensor_format="pt")
    edit_json(x4 / "scheduler/scheduler_config.json", clip_sample=True)
    model = open_still(x4)
    assert dict(model.scheduler.config) == dict(whole.scheduler.config)
    assert torch.equal(model.lowres_scheduler.betas, whole.lowres_scheduler.betas)


@pytest.mark.parametrize(
    ("options", "becomes"),
    [
        ({"_class_name": "EulerAncestralDiscreteScheduler", "beta_end": 0.02}, "DDIMScheduler"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "beta_end": 0.02},
            "DDIMScheduler",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
            "FlowMatchEulerDiscreteScheduler",
        ),
    ],
)
def test_no_scheduler_draws_noise_whether_its_class_or_an_option_says_so(
    options: dict[str, object], becomes: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """A bundle of one that does could not be opened again."""
    folder = shutil.copytree(folders["sd15"], tmp_path / "sd15")
    stored = {"shift": 3.0} if "Flow" in becomes else {"beta_start": 0.001, "beta_schedule": "scaled_linear"}
    stored |= options
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(stored))
    model = open_still(folder)
    save_bundle(model, tmp_path / "bundle")
    for scheduler in (model.scheduler, load_bundle(tmp_path / "bundle").scheduler):
        assert type(scheduler).__name__ == becomes
        assert not draws_noise(scheduler)
        kept = {key: stored[key] for key in ("shift", "beta_start", "beta_end") if key in stored}
        assert kept.items() <= scheduler.config.items()


def test_variants(tmp_path: Path) -> None:
    half = open_still(write_pipeline(tmp_path / "half", "x4-upscaler", variant="fp16"))  # the only one: it is found
    assert (tmp_path / "half/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    write_pipeline(tmp_path / "full", "x4-upscaler")
    full = open_still(tmp_path / "full")
    shutil.copytree(tmp_path / "half", tmp_path / "full", dirs_exist_ok=True)
    assert_same_weights(open_still(tmp_path / "full"), full)
    assert_same_weights(open_still(tmp_path / "full", variant="fp16"), half)
    assert not torch.equal(half.denoiser.unet.conv_in.weight, full.denoiser.unet.conv_in.weight)
    with pytest.raises(UserError, match="variant"):
        open_still(tmp_path / "full", variant="bf16")


@pytest.mark.parametrize("variant", [{}, {"variant": "fp16"}])
def test_shards(variant: dict[str, str], tmp_path: Path) -> None:
    write_pipeline(tmp_path / "whole", "sd15", **variant)
    write_pipeline(tmp_path / "shards", "sd15", max_shard_size="2MB", **variant)
    assert len(list((tmp_path / "shards/unet").glob("*-of-*.safetensors"))) > 2
    assert_same_weights(open_still(tmp_path / "shards"), open_still(tmp_path / "whole"))


def test_the_hubs_cache(x4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: what was downloaded before is found by name, by revision and by commit."""
    commit, repository = "0123456789abcdef" * 2 + "01234567", tmp_path / "hub" / "models--owner--upscaler"
    (repository / "refs").mkdir(parents=True)
    for branch in ("main", "tested"):
        (repository / "refs" / branch).write_text(commit)
    shutil.copytree(x4, repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("owner/upscaler", "owner/upscaler@tested", f"owner/upscaler@{commit}"):
        assert find_model(name) == repository / "snapshots" / commit
    assert find_model("owner/upscaler", revision="tested") == repository / "snapshots" / commit
    assert_same_weights(open_still("owner/upscaler@tested"), open_still(x4))
    for name in ("owner/upscaler@other", "owner/none"):
        with pytest.raises(UserError, match=f"{name} is not a model bundle or file here"):
            find_model(name)


@pytest.mark.parametrize("kind", ["x4-upscaler", "sd15-inpainting", "sd15"])
def test_growing_leaves_the_result_and_opens_the_way(kind: str, folders: dict[str, Path]) -> None:
    model, pipeline, own = open_still(folders[kind]), pipeline_of(folders[kind]), KINDS[kind].in_channels
    evidence, text = clip_evidence(1, (32, 32)), model.text(["a cat"])
    side, time = 128 // model.codec.factor, torch.tensor(500)
    noisy, level = randn(1, 1, 4, side, side), None
    seen = {"x4-upscaler": [evidence.lowres * (1 - F.max_pool2d(evidence.hole[0], 4))], "sd15": []}
    if kind == "x4-upscaler":
        level = torch.tensor([30])
    known = seen.get(kind, [F.max_pool2d(evidence.hole[0], 8)[None], model.encode_canvas(evidence)])
    published = pipeline.unet(torch.cat([noisy, *known], dim=2)[0], time, text, class_labels=level, return_dict=False)[
        0
    ]

    def predict() -> Tensor:
        return model.predict(noisy, time, evidence, text, noise_level=level)

    before, entrance = predict(), model.denoiser.unet.conv_in
    torch.testing.assert_close(before[0], published, atol=1e-4, rtol=0)
    assert entrance.in_channels > own
    with torch.no_grad():
        entrance.weight[:, own:] = 0.05
    assert (predict() - before).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["x4-upscaler", "sd15-inpainting"])
def test_an_opened_model_is_saved_as_a_bundle(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = open_model(folders[kind])
    save_bundle(model, tmp_path / kind)
    loaded = open_model(tmp_path / kind)
    assert_same_weights(loaded, model)
    assert (loaded.sees_canvas, loaded.sampling, loaded.layout) == (model.sees_canvas, model.sampling, model.layout)
    side, outputs = 128 // model.codec.factor, []
    for one in (model, loaded):
        evidence, level = clip_evidence(1, (32, 32)), None
        if kind == "x4-upscaler":
            level = torch.tensor([30])
            evidence = one.noise_lowres(evidence, level, randn(1, 1, 3, side, side))
        noisy, text = randn(1, 1, 4, side, side), one.text(["a cat"])
        outputs.append(one.predict(noisy, torch.tensor(500), evidence, text, noise_level=level))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=0)
    if kind == "x4-upscaler":
        (tmp_path / kind / "lowres_scheduler/scheduler_config.json").unlink()
        with pytest.raises(UserError, match="lowres_scheduler"):
            load_bundle(tmp_path / kind)


def test_a_noise_level_needs_a_model_that_knows_it(folders: dict[str, Path]) -> None:
    model, level = open_still(folders["sd15"]), torch.tensor([20])
    with pytest.raises(UserError, match="noise level"):
        model.predict(randn(1, 1, 4, 8, 8), 500.0, clip_evidence(1, (16, 16)), model.text([""]), noise_level=level)
    with pytest.raises(UserError, match="noise level"):
        model.noise_lowres(clip_evidence(1, (16, 16)), level, randn(1, 1, 3, 8, 8))


def test_the_lowest_noise_levels_are_not_rounded_to_none(folders: dict[str, Path]) -> None:
    """A model in bfloat16 is told of a level whose square bfloat16 cannot tell from 0."""
    model, level = open_still(folders["x4-upscaler"]), torch.tensor([5])
    evidence = clip_evidence(1, (32, 32)).map(torch.zeros_like)
    side = 128 // model.codec.factor
    noise = randn(1, 1, 3, side, side)
    exact = model.noise_lowres(evidence, level, noise).lowres
    half = model.noise_lowres(evidence.map(Tensor.bfloat16), level, noise.bfloat16()).lowres
    assert exact.std() > 1e-3
    assert half.float().std() == pytest.approx(exact.std().item(), rel=0.01)
