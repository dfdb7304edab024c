"""From the command line to what a segment is restored with: the model's own values, the config's, the user's."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from torch import nn

from ldm_video import restoration
from ldm_video.core.errors import UserError
from ldm_video.models.bundle import load_bundle
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.models.video_model import SamplingDefaults, VideoModel
from ldm_video.pipeline.arguments import DEFAULTS, SHIPPED, parse_arguments
from ldm_video.pipeline.job import Job
from ldm_video.pipeline.restore import RestoreSettings
from ldm_video.pipeline.settings import read_config
from ldm_video.video_io import VideoInfo, probe
from tests.cli_support import ROOT, tiny_model
from tests.model_support import small_text_model
from tests.video_io_support import pan, write_clip

SIZE = (32, 48)
OWN = SamplingDefaults(
    steps=0, guidance=1.0, scale=3, window=9, overlap=3, strength=1.0, average=2, steady=3, fidelity=0.36
)
"""Of a decoder that sees the clip, in a model that takes neither a prompt nor a noise level."""
OWN_WITH_TEXT = SamplingDefaults(
    steps=7, guidance=2.5, window=5, overlap=1, strength=0.6, noise_level=20, noise_limit=100, fidelity=1.0
)
SHARED = {field.name for field in fields(SamplingDefaults)} & {field.name for field in fields(RestoreSettings)}
DOCUMENTS = [ROOT / "docs" / "method.md", ROOT / "CHANGELOG.md"]


@pytest.fixture(scope="module")
def model() -> VideoModel:
    model = tiny_model()
    model.sampling = OWN
    return model


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    model = small_text_model(tmp_path_factory.mktemp("text"))
    model.sampling = OWN_WITH_TEXT
    return model


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> VideoInfo:
    return probe(write_clip(tmp_path_factory.mktemp("clip") / "sd.mp4", pan(2, *SIZE)))


Read = Callable[..., tuple[argparse.Namespace, DictConfig]]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """``read(*words)``: what infer.py makes of its command line."""

    def run(*words: object) -> tuple[argparse.Namespace, DictConfig]:
        monkeypatch.setattr("sys.argv", ["infer.py", "--input", "sd.mp4", "--output", "hd.mkv", *map(str, words)])
        arguments = parse_arguments()
        return arguments, read_config(arguments, DEFAULTS)

    return run


@pytest.fixture
def settings(read: Read) -> Callable[..., RestoreSettings]:
    """``settings(model, *words)``: what a segment is restored with."""
    return lambda model, *words: restoration.make_settings(read(*words)[1], model)


@pytest.fixture
def job(read: Read, info: VideoInfo, model: VideoModel) -> Callable[..., Job]:
    """``job(*words)``: what is done with the clip, with the model without a prompt."""

    def run(*words: object) -> Job:
        arguments, config = read(*words)
        return restoration.make_job(arguments, config, info, model.sampling)

    return run


# The model's own.


def test_what_a_model_can_say_of_itself() -> None:
    """A new field of both is one more that ``make_settings`` has to take over, and one more to be unusual here."""
    names = {"steps", "guidance", "window", "overlap", "strength", "noise_level", "average", "steady", "fidelity"}
    assert names == SHARED
    for name in names:
        assert {getattr(own, name) for own in (OWN, OWN_WITH_TEXT)} - {getattr(RestoreSettings(), name)}, name


def test_the_models_own_is_used_where_nothing_is_given(
    model: VideoModel, text_model: VideoModel, settings: Callable[..., RestoreSettings]
) -> None:
    for given in (model, text_model):
        made = settings(given)
        assert {name: getattr(made, name) for name in SHARED} == {
            name: getattr(given.sampling, name) for name in SHARED
        }


def test_the_rest_is_the_configs(model: VideoModel, settings: Callable[..., RestoreSettings]) -> None:
    """As ``configs/infer/default.yaml`` has it."""
    made = settings(model)
    assert {field.name: getattr(made, field.name) for field in fields(made) if field.name not in SHARED} == {
        "seed": 0, "tile": None, "tile_overlap": 128, "dilate": 1, "feather": 8, "colour": "wavelet",
        "propagate": "auto", "fill": "patches",
    }  # fmt: skip


def test_size_and_segments_are_the_models_own_too(job: Callable[..., Job]) -> None:
    plain = job()
    assert plain.size == (3 * SIZE[0], 3 * SIZE[1])
    assert (plain.rules.segment, plain.rules.overlap) == (32, OWN.overlap)
    assert job("--scale", 2).size == (2 * SIZE[0], 2 * SIZE[1])
    assert job("--height", 40).size == (40, 60)


def test_a_segment_holds_a_window_and_its_overlaps(job: Callable[..., Job]) -> None:
    without = job("segment=4", "--overlap", 0).rules
    assert (without.segment, without.overlap) == (OWN.window, 0)
    assert job("segment=4").rules.segment == 10  # three times the model's overlap, and one
    assert job("segment=4", "--overlap", 1).rules.segment == OWN.window
    assert job("--window", 40).rules.segment == 40
    assert job("segment=4", "--overlap", 1, "--window", 3).rules.segment == 4


# What the user says.

GIVEN: list[tuple[tuple[object, ...], dict[str, Any]]] = [
    (("average=0", "steady=0", "fidelity=0"), {"average": 0, "steady": 0, "fidelity": 0.0}),
    (("average=1", "steady=1", "fidelity=1"), {"average": 1, "steady": 1, "fidelity": 1.0}),
    (("fidelity=0.25",), {"fidelity": 0.25}),
    (("--steps", 3), {"steps": 3}),
    (("--steps", 3, "--strength", 0.5), {"steps": 3, "strength": 0.5}),
    (("--guidance", 1), {"guidance": 1.0}),
    (("--seed", 5), {"seed": 5}),
    (("seed=-1",), {"seed": -1}),
    (("--window", 6, "--overlap", 0), {"window": 6, "overlap": 0}),
    (("--tile", "256x384"), {"tile": (256, 384)}),
    (("--tile", "48x64", "tile_overlap=16"), {"tile": (48, 64), "tile_overlap": 16}),
    (("dilate=0",), {"dilate": 0}),
    (("dilate=2",), {"dilate": 2}),
    (("dilate=0.5",), {"dilate": 0.5}),
    (("feather=0",), {"feather": 0}),
    (("colour=none",), {"colour": "none"}),
    (("colour=adain",), {"colour": "adain"}),
    (("fill=model",), {"fill": "model"}),
    (("--fill", "model"), {"fill": "model"}),
    (("propagate=off",), {"propagate": "off"}),
    (("propagate=on",), {"propagate": "on"}),
    (("--propagate", "off"), {"propagate": "off"}),
    (("--propagate", "on"), {"propagate": "on"}),
    (("--propagate", "auto"), {}),
]


@pytest.mark.parametrize(("words", "expected"), GIVEN, ids=["_".join(map(str, words)) for words, _ in GIVEN])
def test_what_is_given_is_used_and_nothing_else_changes(
    model: VideoModel, settings: Callable[..., RestoreSettings], words: tuple[object, ...], expected: dict[str, Any]
) -> None:
    """A zero, and what YAML reads as a truth value, is a value like any other."""
    made = settings(model, *words)
    assert made == replace(settings(model), **expected)
    assert isinstance(made.propagate, str)


def test_every_setting_can_be_given() -> None:
    named = {name for _, expected in GIVEN for name in expected}
    assert named | {"noise_level"} == {field.name for field in fields(RestoreSettings)}


def test_what_is_given_to_a_model_with_a_prompt(
    text_model: VideoModel, settings: Callable[..., RestoreSettings]
) -> None:
    own = settings(text_model)
    words = ("--noise-level", 0, "--guidance", 1, "--strength", 1, "fidelity=0", "--fill", "patches")
    made = settings(text_model, *words)
    assert made == replace(own, noise_level=0, guidance=1.0, strength=1.0, fidelity=0.0, fill="patches")
    assert (own.fill, own.noise_level) == ("model", 20)


def test_the_config_file_goes_before_the_model_and_flags_before_both(
    model: VideoModel, settings: Callable[..., RestoreSettings], tmp_path: Path
) -> None:
    """A bare on or off in the file too is what it says."""
    file = tmp_path / "mine.yaml"
    file.write_text("average: 0\nsteady: 1\npropagate: off\ndeinterlace: on\ncuts: off\n")
    own = settings(model)
    assert settings(model, "--config", file) == replace(own, average=0, steady=1, propagate="off")
    given = settings(model, "--config", file, "steady=0", "average=null", "--propagate", "on")
    assert given == replace(own, steady=0, propagate="on")


@pytest.mark.parametrize(
    ("words", "deinterlace", "cuts"),
    [
        ((), "auto", True),
        (("--deinterlace", "off"), "off", True),
        (("--deinterlace", "on"), "on", True),
        (("deinterlace=off",), "off", True),
        (("deinterlace=on",), "on", True),
        (("deinterlace=auto", "cuts=off"), "auto", False),
        (("cuts=auto",), "auto", True),
    ],
)
def test_deinterlacing_and_cuts(
    job: Callable[..., Job], words: tuple[object, ...], deinterlace: str, cuts: bool
) -> None:
    made = job(*words)
    assert (made.deinterlace, made.find_cuts) == (deinterlace, cuts)


def test_join_chain_and_encoding(job: Callable[..., Job]) -> None:
    made = job("chain=3", "join=continue", "--codec", "ffv1", "--crf", 0, "preset=slow")
    assert (made.rules.chain, made.rules.join) == (3, "continue")
    assert made.encoding == {"codec": "ffv1", "crf": 0, "preset": "slow"}
    assert job("--config", "fast").encoding == {"codec": "libx264", "crf": 16, "preset": "veryfast"}


@pytest.mark.parametrize(
    ("sampling", "words", "line"),
    [
        ({}, ("--overlap", 9), "--overlap 9 must be less than --window 9"),
        ({}, ("--window", 3), "--overlap 3 must be less than --window 3"),
        ({"fidelity": 1.5}, (), "fidelity is 1.5"),
        ({"strength": 0.5}, (), "--steps 0 has none"),
        ({}, ("--strength", 0.5), "--steps 0 has none"),
        ({}, ("--noise-level", 5), "is not told of a noise level"),
        ({"guidance": 4.0}, (), "nothing to guide to"),
        ({"noise_level": 20, "noise_limit": 10}, (), "--noise-level 20 is outside 0 to 10"),
    ],
)
def test_values_that_do_not_go_together_are_refused_whoever_gave_them(
    model: VideoModel,
    settings: Callable[..., RestoreSettings],
    monkeypatch: pytest.MonkeyPatch,
    sampling: dict[str, Any],
    words: tuple[object, ...],
    line: str,
) -> None:
    monkeypatch.setattr(model, "sampling", replace(OWN, **sampling))
    with pytest.raises(UserError, match=line):
        settings(model, *words)


# The model that ships.


@pytest.fixture(scope="module")
def shipped() -> VideoModel:
    return load_bundle(SHIPPED)


def stated(document: Path, name: str) -> set[float]:
    """The shipped model's own value of ``name``, wherever the document says it."""
    text = " ".join(document.read_text().split())
    return {float(value) for value in re.findall(rf"\(`{name}`,(?:[^()]*? own is)? ([0-9]+(?:\.[0-9]+)?)[,)]", text)}


@pytest.mark.parametrize("name", ["average", "steady", "fidelity"])
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_say_what_ships(shipped: VideoModel, document: Path, name: str) -> None:
    assert stated(document, name) == {getattr(shipped.sampling, name)}


def test_the_shipped_model_is_used_as_documented(shipped: VideoModel, settings: Callable[..., RestoreSettings]) -> None:
    """Without a step, at its own scale of 4, with every measure against flicker; other models take none of those."""
    sampling, made = shipped.sampling, settings(shipped)
    assert (sampling.steps, sampling.average, sampling.steady, sampling.fidelity, sampling.scale) == (0, 2, 2, 0.36, 4)
    assert (made.steps, made.average, made.steady, made.fidelity, made.fill) == (0, 2, 2, 0.36, "patches")
    assert "**The shipped model takes no step by default**" in DOCUMENTS[1].read_text()
    assert SHIPPED.name.endswith(f"x{sampling.scale}")
    others = SamplingDefaults()
    assert (others.average, others.steady, others.fidelity) == (0, 0, 0.0)


def test_the_documents_count_the_parameters_that_dry_run_counts(shipped: VideoModel) -> None:
    def millions(part: nn.Module) -> str:
        return f"{sum(parameter.numel() for parameter in part.parameters()) / 1e6:.1f}M"

    card = (ROOT / "ldm_video" / "weights" / "README.md").read_text()
    assert f"`small-x4` ({millions(shipped)} parameters" in (ROOT / "README.md").read_text()
    assert f"ships with ldm-video. {millions(shipped)} parameters" in card
    assert isinstance(shipped.codec, PairedCodec)
    rows = {"denoiser": shipped.denoiser, "codec": shipped.codec.decoder, "restorer": shipped.codec.restorer}
    for name, part in rows.items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        assert re.findall(r"\d+\.\dM", row) == [millions(part)]


@pytest.mark.parametrize("option", ["--box", "--bo"])
def test_a_box_may_begin_outside_the_frame(option: str) -> None:
    common = ("--input", "sd.mp4", "--output", "hd.mp4")
    given = parse_arguments((*common, option, "-5,-5,10,10", "scale=2", option, "1,2,3,4", f"{option}=-1,2,3,4"))
    assert given.box == ["-5,-5,10,10", "1,2,3,4", "-1,2,3,4"]
    assert given.overrides == ["scale=2"]


def test_a_second_adapter_is_not_taken_in_silence() -> None:
    common = ("--input", "sd.mp4", "--output", "hd.mp4", "--lora", "one")
    assert parse_arguments(common).lora == "one"
    with pytest.raises(UserError, match="--lora is given twice, and one is taken; leave the other out"):
        parse_arguments((*common, "--lora", "two"))
