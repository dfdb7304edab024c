"""Models in other forms: Stable Diffusion -> bundle -> diffusers, and AnimateDiff's motion modules."""

from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ldm_video.convert as convert
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.export import spatial_unet
from ldm_video.models.inflate import VideoUNet, WithTemporal
from ldm_video.models.motion_adapter import fold, load_motion, read_motion_adapter
from ldm_video.models.open_model import FRAME_BY_FRAME, open_model
from ldm_video.models.temporal import TemporalConfig
from tests.cli_support import TINY_MODEL, call, files_below, write_tiny_bundle
from tests.model_support import perturb, rand_pixels, randn, small_text_model
from tests.sd_checkpoints import KINDS, pipeline_of, write_pipeline, write_single_file

SHARED = ("vae", "unet", "text_encoder")
HEADS = 4
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
    """``sd15`` of diffusers, the bundle ``bundle`` of it, and the motion adapter ``motion``."""
    root = tmp_path_factory.mktemp("convert")
    write_pipeline(root / "sd15", "sd15")
    assert call(convert, "to-bundle", root / "sd15", root / "bundle", "--head-dim", 16) == 0
    motion_adapter().save_pretrained(root / "motion")
    return root


def motion_adapter(**changes: Any) -> MotionAdapter:
    torch.manual_seed(7)
    widths = {"block_out_channels": KINDS["sd15"].widths, "motion_num_attention_heads": HEADS}
    adapter = MotionAdapter(**{**widths, "motion_norm_num_groups": 8, **changes})
    perturb(adapter, 0.1)
    return adapter


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


@pytest.fixture
def trouble(root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A model or adapter with something wrong, by name."""

    def trained() -> None:
        model = load_bundle(root / "bundle")
        perturb(model.denoiser, 0.01)
        save_bundle(model, tmp_path / "trained")

    def of_another_kind() -> None:
        (tmp_path / "of_another_kind").mkdir()
        (tmp_path / "of_another_kind/config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))

    def incomplete() -> None:
        motion_adapter().save_pretrained(tmp_path / "incomplete")
        weights = next((tmp_path / "incomplete").glob("*.safetensors"))
        state = load_file(weights)
        del state["up_blocks.1.motion_modules.0.proj_in.weight"]
        save_file(state, weights)

    def with_a_huge_weight() -> None:
        model = open_model(root / "sd15", temporal=FRAME_BY_FRAME)
        next(model.codec.parameters()).fill_(1e5)
        save_bundle(model, tmp_path / "with_a_huge_weight")

    makers: dict[str, Callable[[], Any]] = {
        "tiny": lambda: write_tiny_bundle(tmp_path / "tiny"),
        "flow": lambda: save_bundle(small_text_model(tmp_path / "words"), tmp_path / "flow"),
        "no_time": lambda: save_bundle(open_model(root / "sd15", temporal=FRAME_BY_FRAME), tmp_path / "no_time"),
        "three_levels": lambda: motion_adapter(block_out_channels=(32, 64, 64)).save_pretrained(
            tmp_path / "three_levels"
        ),
        "unet": lambda: save_file({"down.weight": torch.zeros(1)}, tmp_path / "unet"),
        "other_heads": lambda: motion_adapter(motion_num_attention_heads=16).save_pretrained(tmp_path / "other_heads"),
        "something": lambda: (tmp_path / "something").mkdir(),
        **{f.__name__: f for f in (trained, of_another_kind, incomplete, with_a_huge_weight)},
    }

    def make(name: str) -> Path:
        if name in makers:
            makers[name]()
        return (root if (root / name).exists() else tmp_path) / name

    return make


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["to-bundle", "none", "out"], "none is not a model bundle"),
        (["to-bundle", "x.ckpt", "out"], "is a pickle"),
        (["to-bundle", "sd15", "out", "--head-dim", "1"], "head_dim is 1"),
        (["to-bundle", "sd15", "out", "--dtype", "fp8"], "invalid choice"),
        (["to-bundle", "sd15", "out", "--head-dim", "0", "--heads", "8"], "give one of them"),
        (["to-bundle", "bundle", "out", "--heads", "8"], "--heads has no effect; give the checkpoint that it began as"),
        (["to-bundle", "bundle", "out", "--head-dim", "32"], "--head-dim has no effect"),
        (["to-bundle", "bundle", "out", "--variant", "fp16"], "--variant has no effect"),
        (["to-bundle", "sd15", "bundle"], "bundle exists; pass --overwrite"),
        (["to-bundle", "sd15", "something", "--overwrite"], "is not a model, so it is not replaced"),
        (["to-bundle", "with_a_huge_weight", "out", "--dtype", "fp16"], "codec.autoencoder.encoder.conv_in.weight"),
        (["to-diffusers", "tiny", "out"], "codec is a VideoCodec"),
        (["to-diffusers", "flow", "out"], "flow matching"),
        (["to-diffusers", "motion", "out"], "is not a model bundle"),
        (["add-motion", "bundle", "none", "out"], "none does not exist"),
        (["add-motion", "bundle", "sd15", "out"], "config.json"),
        (["add-motion", "bundle", "bundle", "out"], "bundle is not a motion adapter"),
        (["add-motion", "bundle", "of_another_kind", "out"], "is of a ControlNetModel"),
        (["add-motion", "bundle", "incomplete", "out"], "'up_blocks.1.motion_modules.0.proj_in.weight' missing"),
        (["add-motion", "bundle", "unet", "out"], "holds no AnimateDiff motion modules"),
        (["add-motion", "bundle", "three_levels", "out"], "3 levels, the model's has 4"),
        (["add-motion", "bundle", "other_heads", "out"], "nothing of the adapter fits"),
        (["add-motion", "no_time", "motion", "out"], "make the bundle without --head-dim 0: to-bundle --heads 4"),
        (["add-motion", "trained", "motion", "out"], "are trained"),
        (["add-motion", "bundle", "out"], "--help"),
        (["turn"], "invalid choice"),
    ],
)
def test_refusals(
    words: list[str],
    complaint: str,
    trouble: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, *rest = words
    arguments: list[object] = [
        word if word.startswith("-") or word[0].isdigit() or word in ("fp8", "fp16") else trouble(word) for word in rest
    ]
    before = files_below(tmp_path)
    capsys.readouterr()
    assert call(convert, command, *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert complaint in errors[0]
    assert files_below(tmp_path) == before


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 100 KB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "words", [["to-bundle", "sd15"], ["to-diffusers", "bundle"], ["add-motion", "bundle", "motion"]]
)
def test_nothing_half_written(
    words: list[str], root: Path, tmp_path: Path, full_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = words
    assert call(convert, command, *(root / word for word in rest), tmp_path / "out") == 2
    assert "free some space" in capsys.readouterr().err
    assert not files_below(tmp_path)


def test_overwriting_a_model(root: Path, tmp_path: Path) -> None:
    save_bundle(load_bundle(root / "bundle"), tmp_path / "out")
    assert call(convert, "to-diffusers", tmp_path / "out", tmp_path / "out", "--overwrite") == 0
    assert_same_parts(pipeline_of(tmp_path / "out"), pipeline_of(root / "sd15"))
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("word", ["99999999999999999999999", str(2**63), "-1", "1.5"])
def test_a_seed_that_torch_does_not_take(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(convert, "fresh", TINY_MODEL, tmp_path / "fresh", "--seed", word) == 2
    assert f"{word} is not a seed" in capsys.readouterr().err
    assert not (tmp_path / "fresh").exists()


def test_the_largest_seed(tmp_path: Path) -> None:
    assert call(convert, "fresh", TINY_MODEL, tmp_path / "fresh", "--seed", 2**63 - 1) == 0
