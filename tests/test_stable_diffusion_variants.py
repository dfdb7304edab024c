"""Folders whose parts are not all of one variant, here and on the hub; what libraries say of them in their logs."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from ldm_video.core.errors import UserError
from ldm_video.models.open_model import FRAME_BY_FRAME, find_model, open_model
from ldm_video.models.video_model import VideoModel
from tests.cli_support import files_below
from tests.sd_checkpoints import write_pipeline

MODULE = importlib.import_module("ldm_video.models.open_model")
PLAIN, HALF = (f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "fp16.safetensors"))
LIBRARIES = [logging.getLogger(name) for name in ("diffusers", "transformers")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("sd") / "x4", "x4-upscaler")


@pytest.fixture
def x4(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "x4"))


@pytest.fixture
def mixed(x4: Path) -> Path:
    """A folder with its UNet in half precision alone, by the name, and no other part so."""
    (x4 / "unet" / PLAIN).rename(x4 / "unet" / HALF)
    return x4


@pytest.fixture
def said() -> Iterator[list[logging.LogRecord]]:
    """What libraries put into their logs."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    for library in LIBRARIES:
        library.addHandler(handler)
    yield records
    for library in LIBRARIES:
        library.removeHandler(handler)


def open_still(name: Path | str, variant: str | None = None) -> VideoModel:
    return open_model(name, variant=variant, temporal=FRAME_BY_FRAME)


def assert_same_weights(one: VideoModel, two: VideoModel) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_each_part_is_read_as_it_is_there(mixed: Path, whole: Path) -> None:
    assert_same_weights(open_still(mixed), open_still(whole))


@pytest.mark.parametrize(
    ("variant", "part", "others"),
    [("fp16", "vae", "plain ones; leave the variant out"), ("bf16", "vae", "plain ones; leave the variant out")],
)
def test_a_part_that_lacks_the_given_variant(
    variant: str, part: str, others: str, mixed: Path, said: list[logging.LogRecord]
) -> None:
    with pytest.raises(UserError, match=f"^{mixed / part} has no weights of the variant {variant}, only {others}"):
        open_still(mixed, variant)
    assert not said


def test_several_variants_and_no_plain_weights(mixed: Path) -> None:
    shutil.copy(mixed / "unet" / HALF, mixed / "unet" / HALF.replace("fp16", "bf16"))
    with pytest.raises(UserError, match=f"^{mixed / 'unet'} has no plain weights, only bf16, fp16; give one of these"):
        open_still(mixed)


def test_a_part_without_weights(x4: Path) -> None:
    (x4 / "unet" / PLAIN).unlink()
    with pytest.raises(UserError, match=f"^{x4 / 'unet'} has no plain weights in safetensors; .* download it again"):
        open_still(x4)


@pytest.mark.parametrize(
    ("part", "size"),
    [("unet", {"in_channels": 8}), ("vae", {"latent_channels": 16}), ("text_encoder", {"intermediate_size": 32})],
)
def test_libraries_do_not_speak_before_us(
    part: str, size: dict[str, int], x4: Path, said: list[logging.LogRecord]
) -> None:
    config, levels = x4 / part / "config.json", [library.level for library in LIBRARIES]
    config.write_text(json.dumps(json.loads(config.read_text()) | size))
    with pytest.raises(UserError, match="of another shape"):
        open_still(x4)
    assert not said
    assert [library.level for library in LIBRARIES] == levels


def test_of_the_hub_no_more_is_fetched_than_is_needed(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain weights where there are such, else the only variant; a stand-in for the hub copies what it is asked for."""
    shutil.copy(mixed / "vae" / PLAIN, mixed / "vae" / HALF)
    files, snapshot = sorted(files_below(mixed)), tmp_path / "snapshots" / "0123"

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) in [("owner/x4", "tested"), ("owner/x4", "0123")]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(mixed / file, snapshot / file)
        return str(snapshot)

    monkeypatch.setattr(MODULE, "snapshot_download", download)
    monkeypatch.setattr(MODULE, "list_repo_files", lambda name, revision: files)
    assert find_model("owner/x4@tested") == snapshot
    weights = {file for file in files_below(snapshot) if file.endswith(".safetensors")}
    assert weights == {f"unet/{HALF}", f"vae/{PLAIN}", "text_encoder/model.safetensors"}
    assert_same_weights(open_still("owner/x4@tested"), open_still(mixed))
