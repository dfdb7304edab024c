"""What conversion refuses, each with one line that says why, and that it leaves nothing half written."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm_video.convert as convert
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.open_model import FRAME_BY_FRAME, open_model
from tests.cli_support import TINY_MODEL, call, files_below, write_tiny_bundle
from tests.convert_support import motion_adapter, write_models
from tests.model_support import perturb, small_text_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory)


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


@pytest.mark.parametrize("word", ["99999999999999999999999", str(2**63), "-1", "1.5"])
def test_a_seed_that_torch_does_not_take(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(convert, "fresh", TINY_MODEL, tmp_path / "fresh", "--seed", word) == 2
    assert f"{word} is not a seed" in capsys.readouterr().err
    assert not (tmp_path / "fresh").exists()
