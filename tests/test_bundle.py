"""Bundles: what is saved comes back to the bit, and whatever does not belong is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.text import TextEncoder
from ldm_video.models.video_model import VideoModel
from tests.model_support import (
    TEXT_WIDTH,
    TOKENS,
    clip_evidence,
    randn,
    small_text_encoder,
    small_text_model,
    small_video_model,
)


def outputs(model: VideoModel, text: Tensor | None = None) -> list[Tensor]:
    """What denoiser and codec say of fixed inputs."""
    evidence = clip_evidence(2, (4, 8))
    factor, channels = model.codec.factor, model.codec.latent_channels
    latents = randn(1, 2, channels, 16 // factor, 32 // factor)
    predicted = model.predict(latents, torch.tensor(700.0), evidence, text)
    return [predicted, model.codec.encode(evidence.guess.flip(-1), evidence), model.codec.decode(latents, evidence)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    save_bundle(small_video_model(attention_levels=(1,)), folder)
    return folder


@pytest.fixture
def text_bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    save_bundle(small_text_model(tmp_path / "vocabulary"), folder)
    return folder


def test_round_trip(bundle: Path) -> None:
    model, loaded = small_video_model(attention_levels=(1,)), load_bundle(bundle)
    for before, after in zip(outputs(model), outputs(loaded), strict=True):
        assert torch.equal(before, after)
    assert loaded.layout == model.layout
    assert loaded.sampling == model.sampling
    assert loaded.shared_noise == model.shared_noise
    ours, theirs = ({k: v for k, v in m.scheduler.config.items() if k[0] != "_"} for m in (model, loaded))
    assert type(loaded.scheduler) is type(model.scheduler)
    assert ours == theirs
    assert loaded.scheduler.config.shift == 3.0
    assert loaded.text is None
    assert loaded.multiple == model.multiple == 16
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_second_round_trip_writes_the_same_files(bundle: Path, tmp_path: Path) -> None:
    save_bundle(load_bundle(bundle), tmp_path / "again")
    first = {p.relative_to(bundle): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    second = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert first == second


def test_half_precision_rounds_the_weights_and_nothing_else(tmp_path: Path) -> None:
    model = small_text_model(tmp_path / "vocabulary")
    save_bundle(model, tmp_path / "half", torch.float16)
    for path in (tmp_path / "half").rglob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values() if value.is_floating_point()} == {torch.float16}
    loaded = load_bundle(tmp_path / "half").state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value.half().float() if value.is_floating_point() else value)


def test_round_trip_with_text_and_an_image_codec(text_bundle: Path, tmp_path: Path) -> None:
    model, loaded = small_text_model(tmp_path / "again"), load_bundle(text_bundle)
    prompts = ["ab c", "", "a b c a b c a b c"]  # the last one is read in three pieces
    text = model.text(prompts)
    assert text.shape == (3, 3 * TOKENS, TEXT_WIDTH)
    assert torch.equal(loaded.text(prompts), text)
    for before, after in zip(outputs(model, text[:1]), outputs(loaded, text[:1]), strict=True):
        assert torch.equal(before, after)
    assert (outputs(model, text[1:2])[0] - outputs(model, text[:1])[0]).abs().max() > 1e-6


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_text_weights_have_the_published_names_and_both_are_read(tmp_path: Path, dtype: torch.dtype | None) -> None:
    """Built in code, and read from a file of either kind."""
    encoder = small_text_encoder(tmp_path / "vocabulary")
    encoder.save(tmp_path / "built", dtype)
    published = load_file(tmp_path / "built" / "model.safetensors")
    assert {key.partition(".")[0] for key in published} == {"text_model"}
    with safe_open(tmp_path / "built" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # which older transformers ask for
    shutil.copytree(tmp_path / "built", tmp_path / "bare")
    bare = {key.removeprefix("text_model."): value for key, value in published.items()}
    save_file(bare, tmp_path / "bare" / "model.safetensors", metadata={"format": "pt"})
    for name in ("built", "bare"):
        loaded = TextEncoder.load(tmp_path / name)
        loaded.save(tmp_path / f"{name}_again", dtype)
        again = load_file(tmp_path / f"{name}_again" / "model.safetensors")
        assert again.keys() == published.keys()
        assert all(torch.equal(value, again[key]) for key, value in published.items())


def test_text_is_padded_as_stable_diffusion_does(tmp_path: Path) -> None:
    encoder = small_text_encoder(tmp_path)
    start, end, ab, c = 8, 9, 7, 5
    for prompt, ids in {
        "ab c": [start, ab, c, end, end, end],
        "": [start, end, end, end, end, end],
        "c c c c": [start, c, c, c, c, end],
    }.items():
        expected = encoder.model(torch.tensor([ids])).last_hidden_state
        torch.testing.assert_close(encoder([prompt]), expected)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_replacing_a_bundle_leaves_nothing_of_the_old(bundle: Path, tmp_path: Path) -> None:
    save_bundle(small_text_model(tmp_path / "vocabulary"), bundle)
    save_bundle(small_video_model(), bundle)
    assert not (bundle / "text").exists()
    assert load_bundle(bundle).text is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "vocabulary"]


def test_a_failure_in_the_middle_leaves_the_old_bundle(bundle: Path, tmp_path: Path) -> None:
    broken = small_video_model()
    broken.scheduler = None  # found out when denoiser and codec are written already
    with pytest.raises(AttributeError):
        save_bundle(broken, bundle)
    before = outputs(small_video_model(attention_levels=(1,)))
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(load_bundle(bundle)), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def edit_json(path: Path, **changes: Any) -> None:
    """Set entries; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))


def edit_parts(folder: Path, **changes: Any) -> None:
    parts = json.loads((folder / "model_index.json").read_text())["parts"] | changes
    parts = {key: entry for key, entry in parts.items() if entry is not None}
    edit_json(folder / "model_index.json", parts=parts)


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def offer_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "model.bin")
    (folder / "model.safetensors").unlink()


CODEC, DENOISER, INDEX = "codec/model.safetensors", "denoiser/model.safetensors", "model_index.json"
EXIT = "decoder.exit.bias"
DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing key": (lambda f: edit_weights(f / CODEC, lambda s: s.pop(EXIT)), [CODEC, EXIT, "missing"]),
    "unexpected key": (
        lambda f: edit_weights(f / DENOISER, lambda s: s.update(ghost=torch.zeros(1))),
        [DENOISER, "ghost", "unexpected"],
    ),
    "shape mismatch": (
        lambda f: edit_weights(f / CODEC, lambda s: s.update({EXIT: torch.zeros(5)})),
        [CODEC, EXIT, "another shape"],
    ),
    "pickle": (lambda f: offer_pickle(f / "codec"), ["codec/model.bin", "pickle"]),
    "damaged weights": (lambda f: cut(f / DENOISER), [DENOISER, "not a whole safetensors file"]),
    "missing weights": (lambda f: (f / CODEC).unlink(), [CODEC, "do not exist"]),
    "missing config": (lambda f: (f / "codec/config.json").unlink(), ["codec has no config.json"]),
    "config of another part": (
        lambda f: shutil.copy(f / "codec/config.json", f / "denoiser/config.json"),
        ["denoiser/config.json", "VideoUNet"],
    ),
    "unknown config key": (lambda f: edit_json(f / "codec/config.json", depth=3), ["codec/config.json", "depth"]),
    "damaged config": (lambda f: cut(f / "codec/config.json"), ["codec/config.json", "not valid JSON"]),
    "missing scheduler": (lambda f: shutil.rmtree(f / "scheduler"), ["scheduler_config.json"]),
    "unknown scheduler": (lambda f: edit_parts(f, scheduler="MagicScheduler"), [INDEX, "MagicScheduler"]),
    "scheduler that is none": (lambda f: edit_parts(f, scheduler="AutoencoderKL"), [INDEX, "AutoencoderKL"]),
    "unknown prediction": (
        lambda f: (
            edit_parts(f, scheduler="DDIMScheduler"),
            (f / "scheduler/scheduler_config.json").write_text('{"prediction_type": "velocity"}'),
        ),
        ["scheduler/scheduler_config.json", "prediction_type 'velocity'", "v_prediction"],
    ),
    "time that runs backwards": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", invert_sigmas=True),
        ["scheduler/scheduler_config.json", "invert_sigmas"],
    ),
    "unknown part": (lambda f: edit_parts(f, codec="MagicCodec"), [INDEX, "MagicCodec"]),
    "part too many": (lambda f: edit_parts(f, refiner="VideoUNet"), [INDEX, "refiner"]),
    "part too few": (lambda f: edit_parts(f, denoiser=None), [INDEX, "denoiser"]),
    "unknown format": (lambda f: edit_json(f / INDEX, format=99), [INDEX, "99"]),
    "no format": (lambda f: edit_json(f / INDEX, format=None), [INDEX, "None"]),
    "no layout": (lambda f: edit_json(f / INDEX, layout=None), [INDEX, "layout"]),
    "unknown layout": (lambda f: edit_json(f / INDEX, layout={"kind": "sonar"}), [INDEX, "sonar"]),
    "unknown default": (lambda f: edit_json(f / INDEX, sampling={"stride": 3}), [INDEX, "stride"]),
    "damaged index": (lambda f: cut(f / INDEX), [INDEX, "not valid JSON"]),
    "index of another kind": (lambda f: (f / INDEX).write_text("[1]"), [INDEX, "no JSON object"]),
    "not a bundle": (lambda f: (f / INDEX).unlink(), ["is not a model bundle", INDEX]),
    "nothing there": (shutil.rmtree, ["is not a model bundle"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(bundle: Path, damage: str) -> None:
    change, words = DAMAGES[damage]
    change(bundle)
    with pytest.raises(UserError) as caught:
        load_bundle(bundle)
    assert str(bundle) in str(caught.value)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


TEXT = "text/model.safetensors"
TEXT_KEY = "final_layer_norm.bias"
TEXT_DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing key": (lambda f: edit_weights(f / TEXT, lambda s: s.pop(f"text_model.{TEXT_KEY}")), [TEXT_KEY, "missing"]),
    "unexpected key": (
        lambda f: edit_weights(f / TEXT, lambda s: s.update(ghost=torch.zeros(1))),
        ["ghost", "unexpected"],
    ),
    "shape mismatch": (
        lambda f: edit_weights(f / TEXT, lambda s: s.update({f"text_model.{TEXT_KEY}": torch.zeros(5)})),
        [TEXT_KEY, "another shape"],
    ),
    "pickle": (lambda f: (f / TEXT).rename(f / "text/pytorch_model.bin"), ["text"]),
    "damaged weights": (lambda f: cut(f / TEXT), ["text is not a whole text encoder"]),
    "missing config": (lambda f: (f / "text/config.json").unlink(), ["text has no config.json"]),
    "unknown class": (lambda f: edit_json(f / "text/config.json", architectures=["Magic"]), ["Magic"]),
    "no class": (lambda f: edit_json(f / "text/config.json", architectures=None), ["does not name"]),
    "unknown part": (lambda f: edit_parts(f, text="MagicText"), [INDEX, "text"]),
}


@pytest.mark.parametrize("damage", TEXT_DAMAGES)
def test_damage_of_the_text_encoder_is_named(text_bundle: Path, damage: str) -> None:
    change, words = TEXT_DAMAGES[damage]
    change(text_bundle)
    with pytest.raises(UserError) as caught:
        load_bundle(text_bundle)
    for word in [str(text_bundle), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_the_encoder_of_an_encoder_decoder_comes_back_as_itself(tmp_path: Path, dtype: torch.dtype | None) -> None:
    from transformers import T5Config, T5EncoderModel

    tokenizer = small_text_encoder(tmp_path / "vocabulary").tokenizer
    config = T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    encoder = TextEncoder(T5EncoderModel(config), tokenizer)
    encoder.save(tmp_path / "text", dtype)
    loaded = TextEncoder.load(tmp_path / "text")
    assert type(loaded.model) is T5EncoderModel
    assert torch.equal(loaded(["ab c"]), encoder(["ab c"]))


def test_a_text_encoder_that_was_published_in_half_is_read_in_full(tmp_path: Path) -> None:
    encoder = small_text_encoder(tmp_path / "vocabulary")
    encoder.half().save(tmp_path / "text")
    loaded = TextEncoder.load(tmp_path / "text")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded(["ab c"]), encoder.float()(["ab c"]))
