"""What makes kept work another command's: everything that changes a pixel or its encoding, each by its own name."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_video import restoration
from ldm_video.config import load_config
from ldm_video.models.video_model import SamplingDefaults, VideoModel
from ldm_video.pipeline.arguments import DEFAULTS, parse_arguments
from ldm_video.pipeline.job import Job, Role, identify
from ldm_video.pipeline.journal import changes
from ldm_video.pipeline.plan import PlanRules
from ldm_video.pipeline.prompts import Prompts, find_prompts
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.pipeline.settings import read_config
from ldm_video.pipeline.workers import Share
from ldm_video.video_io import probe
from tests.cli_support import tiny_model
from tests.model_support import randn, small_text_model
from tests.video_io_support import pan, write_clip

BEFORE, LATER = 10**18, 10**18 + 10**6  # ns, a millisecond apart


@dataclass(frozen=True)
class Command:
    """What a journal is opened for, all but the model; the paths lie in the working directory."""

    job: Job
    rules: PlanRules = PlanRules()  # noqa: RUF009 (frozen)
    encoding: tuple[tuple[str, Any], ...] = (("codec", "libx264"), ("crf", 16), ("preset", "medium"))
    role: Role = Role(model=Path("model"))  # noqa: RUF009 (frozen)
    settings: RestoreSettings = RestoreSettings()  # noqa: RUF009 (frozen)
    text: tuple[Tensor, Tensor] | None = None
    prompts: Prompts | None = None

    def identity(self, model: VideoModel, device: str | None = None) -> dict[str, Any]:
        job = replace(self.job, rules=self.rules, encoding=dict(self.encoding))
        restorer = Restorer(model, self.settings, self.text, self.prompts)
        restorer.device = restorer.device if device is None else torch.device(device)
        return identify(job, restorer, self.role)


TEXT = randn(2, 3, 4, seed=1), randn(1, 3, 4, seed=2)
PLAIN = Command(Job(Path("sd.mp4"), Path("hd.mkv"), (64, 96)))
RICH = Command(
    Job(Path("sd.mp4"), Path("hd.mkv"), (64, 96), Path("holes"), [(0, 0, 9, 9)]),
    role=Role(model=Path("model"), lora=(Path("style"), 1.0)),
    settings=RestoreSettings(tile=(64, 128)),
    text=TEXT,
    prompts=Prompts((0, 20), ("a cat", "a dog"), 8),
)
FRAMES = replace(
    RICH,
    job=replace(RICH.job, source=Path("frames"), mask=Path("mask.png"), compare=Path("hd_compare.mkv")),
)
COMMANDS = {"plain": PLAIN, "rich": RICH, "frames": FRAMES}

OTHERS: dict[str, dict[str, tuple[Any, list[str]]]] = {
    "job": {
        "source": (Path("other.mp4"), ["input"]),
        "output": (Path("hd.mp4"), ["output"]),
        "size": ((64, 98), ["size"]),
        "mask": (Path("other.mp4"), ["mask"]),
        "boxes": ([(0, 0, 9, 8)], ["box"]),
        "deinterlace": ("on", ["deinterlace"]),
        "find_cuts": (False, ["cuts"]),
        "compare": (Path("hd_compare.mkv"), ["compare"]),
        "overwrite": (True, []),
    },
    "rules": {
        "segment": (40, ["segments: segment"]),
        "overlap": (5, ["segments: overlap"]),
        "chain": (3, ["segments: chain"]),
        "join": ("continue", ["segments: join"]),
    },
    "settings": {
        "steps": (2, ["steps"]),
        "guidance": (3.0, ["guidance"]),
        "seed": (1, ["seed"]),
        "window": (13, ["window"]),
        "overlap": (3, ["overlap"]),
        "tile": ((64, 64), ["tile"]),
        "tile_overlap": (64, ["tile_overlap"]),
        "dilate": (4, ["dilate"]),
        "feather": (4, ["feather"]),
        "colour": ("adain", ["colour"]),
        "strength": (0.5, ["strength"]),
        "noise_level": (0, ["noise_level"]),
        "propagate": ("off", ["propagate"]),
        "fill": ("patches", ["fill"]),
        "average": (2, ["average"]),
        "steady": (2, ["steady"]),
        "fidelity": (0.36, ["fidelity"]),
    },
    "role": {
        "share": (Share(1, 3), []),
        "restart": (True, []),
        "model": (Path("style"), ["model"]),
        "lora": ((Path("style"), 0.5), ["lora"]),
        "variant": ("fp16", ["variant"]),
    },
    "prompts": {
        "starts": ((0, 21), ["prompt_file"]),
        "texts": (("a cat", "a cow"), ["prompt_file"]),
        "blend": (9, ["prompt_file"]),
    },
}


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return tiny_model()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: clips, masks, a model and an adapter. All files are of one size and one time."""
    monkeypatch.chdir(tmp_path)
    for name in ("frames/0.png", "frames/1.png", "holes/0.png", "holes/1.png", "model/index", "model/codec/weights"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"same")
    Path("style").mkdir()
    Path("style/weights").write_bytes(b"lora")
    for name in ("sd.mp4", "other.mp4", "mask.png"):
        Path(name).write_bytes(b"same")
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        os.utime(file, ns=(BEFORE, BEFORE))
    return tmp_path


def differ(kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """As a journal compares what it has read from its file."""
    return changes(json.loads(json.dumps(kept)), now)


def table_cases() -> Iterator[Any]:
    for name in ("plain", "rich"):
        for part, table in OTHERS.items():
            for field, (value, expected) in table.items():
                if getattr(COMMANDS[name], part) is not None:
                    yield pytest.param(COMMANDS[name], part, field, value, expected, id=f"{name}-{part}-{field}")


@pytest.mark.parametrize(
    ("cls", "part"),
    [(Job, "job"), (PlanRules, "rules"), (RestoreSettings, "settings"), (Role, "role"), (Prompts, "prompts")],
)
def test_every_field_has_its_case(cls: type[Any], part: str) -> None:
    """A new field is told apart, or said not to count, here."""
    elsewhere = {"rules", "encoding"} if cls is Job else set[str]()
    assert {field.name for field in fields(cls)} == OTHERS[part].keys() | elsewhere


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_same_command_goes_on(command: Command, model: VideoModel) -> None:
    assert differ(command.identity(model), copy.deepcopy(command).identity(model)) == []


@pytest.mark.parametrize(("command", "part", "field", "value", "expected"), table_cases())
def test_one_other_value(
    command: Command, part: str, field: str, value: object, expected: list[str], model: VideoModel
) -> None:
    """It is named, and nothing else; whether it was this value before or is now."""
    old: Any = getattr(command, part)
    assert getattr(old, field) != value
    one = command.identity(model)
    other = replace(command, **{part: replace(old, **{field: value})}).identity(model)
    assert differ(one, other) == differ(other, one) == expected


@pytest.mark.parametrize(("key", "value"), [("codec", "ffv1"), ("crf", 17), ("preset", "slow"), ("new", 1)])
def test_the_encoding(key: str, value: object, model: VideoModel) -> None:
    other = replace(PLAIN, encoding=tuple((dict(PLAIN.encoding) | {key: value}).items()))
    assert differ(PLAIN.identity(model), other.identity(model)) == [f"encoding: {key}"]


@pytest.mark.parametrize(
    "text",
    [None, (TEXT[0], TEXT[1] + 1), (TEXT[0].flip(0), TEXT[1]), (TEXT[1], TEXT[0])],
    ids=["none", "negative", "order", "swapped"],
)
def test_the_prompt(text: tuple[Tensor, Tensor] | None, model: VideoModel) -> None:
    assert differ(RICH.identity(model), replace(RICH, text=text).identity(model)) == ["prompt"]


def test_what_is_not_given_any_more(model: VideoModel) -> None:
    given, less = RICH.identity(model), replace(RICH, prompts=None, role=PLAIN.role)
    assert differ(given, less.identity(model)) == ["lora", "prompt_file"]
    without = replace(less, job=replace(less.job, mask=None, boxes=[]))
    assert differ(less.identity(model), without.identity(model)) == ["box", "mask"]


def longer(file: Path) -> None:
    """Its time is what it was."""
    file.write_bytes(file.read_bytes() + b"!")
    os.utime(file, ns=(BEFORE, BEFORE))


def changed(file: Path) -> None:
    """One byte of its content, not its size and its time."""
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    os.utime(file, ns=(BEFORE, BEFORE))


def touched(file: Path) -> None:
    os.utime(file, ns=(LATER, LATER))


def doubled(file: Path) -> None:
    """Another file beside it, empty and of the same time."""
    beside = file.with_name(f"2{file.name}")
    beside.touch()
    os.utime(beside, ns=(BEFORE, BEFORE))


def renamed(file: Path) -> None:
    file.rename(file.with_name("renamed"))


MEDIA = [
    (name, change) for name in ("sd.mp4", "frames/0.png", "mask.png", "holes/1.png") for change in (touched, longer)
]
MEDIA += [(name, change) for name in ("frames/0.png", "holes/1.png") for change in (doubled, renamed)]
WEIGHTS = [
    (name, change)
    for name in ("model/codec/weights", "style/weights")
    for change in (changed, longer, doubled, renamed)
]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("file", "change"), MEDIA + WEIGHTS)
def test_another_file(command: Command, file: str, change: Callable[[Path], None], model: VideoModel) -> None:
    """A file that is another one now is named by what it is to the command; what it does not read does not count."""
    lora = None if command.role.lora is None else command.role.lora[0]
    read = {"input": command.job.source, "mask": command.job.mask, "model": command.role.model, "lora": lora}
    before = command.identity(model)
    change(Path(file))
    expected = [name for name, path in read.items() if path is not None and Path(file).is_relative_to(path)]
    assert differ(before, command.identity(model)) == expected


@pytest.mark.parametrize("file", ["model/index", "model/codec/weights", "style/weights"])
def test_of_a_model_the_content_counts_alone(file: str, model: VideoModel) -> None:
    before = RICH.identity(model)
    touched(Path(file))
    assert differ(before, RICH.identity(model)) == []


def test_a_model_that_was_moved_is_the_same(model: VideoModel) -> None:
    shutil.copytree("model", "elsewhere/model")
    moved = replace(RICH, role=replace(RICH.role, model=Path("elsewhere/model")))
    assert differ(RICH.identity(model), moved.identity(model)) == []


def test_a_path_may_be_written_otherwise(place: Path, model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = FRAMES.identity(model)
    monkeypatch.chdir("holes")
    role = Role(model=Path("../model"), lora=(place / "style", 1.0))
    output, compare = Path("../hd.mkv"), Path("../hd_compare.mkv")
    job = replace(FRAMES.job, source=Path("../frames"), mask=place / "mask.png", output=output, compare=compare)
    assert differ(before, replace(FRAMES, job=job, role=role).identity(model)) == []


def test_device_and_type_count_and_which_gpu_does_not(model: VideoModel) -> None:
    """Processes that share a clip have a GPU each."""
    first, second, cpu = (PLAIN.identity(model, device) for device in ("cuda:0", "cuda:1", "cpu"))
    assert (differ(first, second), differ(first, cpu)) == ([], ["device"])
    assert differ(PLAIN.identity(model), PLAIN.identity(tiny_model().bfloat16())) == ["dtype"]


# From the command line.

OPTIONS: dict[str, tuple[str, list[str]]] = {
    "scale": ("3", ["size"]),
    "height": ("64", ["size"]),
    "prompt": ("a", ["prompt"]),
    "prompt_file": ("prompts.txt", ["prompt", "prompt_file"]),
    "prompt_blend": ("2", ["prompt_file"]),
    "negative_prompt": ("b", ["prompt"]),
    "deinterlace": ("off", ["deinterlace"]),
    "cuts": ("off", ["cuts"]),
    "fill": ("patches", ["fill"]),
    "tile": ("256x256", ["tile"]),
    "device": ("cpu", []),  # what auto is here
    "dtype": ("bf16", ["dtype", "prompt"]),  # the text encoder's as well
    "overlap": ("3", ["overlap", "segments: overlap"]),
    **{name: (value, [name]) for name, value in {
        "steps": "5", "guidance": "2", "noise_level": "7", "strength": "0.5", "seed": "1", "window": "15",
        "average": "1", "steady": "1", "fidelity": "0.5", "propagate": "off", "tile_overlap": "64", "dilate": "2",
        "feather": "4", "colour": "none"}.items()},
    **{name: (value, [f"segments: {name}"]) for name, value in {
        "segment": "40", "chain": "3", "join": "continue"}.items()},
    **{name: (value, [f"encoding: {name}"]) for name, value in {
        "codec": "ffv1", "crf": "17", "preset": "slow"}.items()},
}  # fmt: skip
NOT_HERE = {
    "model", "variant", "lora",  # Role's
    "memory",  # chooses tile and segment, which count
    "attention",  # the same sums in another order
}  # fmt: skip


def test_every_option_has_its_case() -> None:
    assert OPTIONS.keys() | NOT_HERE == set(load_config(DEFAULTS))


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    model = small_text_model(tmp_path_factory.mktemp("text"))
    model.sampling = SamplingDefaults(noise_level=20, noise_limit=100)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "sd.mp4", pan(2, 32, 48))


@pytest.mark.parametrize("option", OPTIONS)
def test_one_other_option(option: str, text_model: VideoModel, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model that takes everything: a prompt, guidance, a noise level."""
    Path("prompts.txt").write_text("0: a\n9: b\n")

    def identity(*overrides: str) -> dict[str, Any]:
        words = ["--input", str(clip), "--output", "hd.mkv", "device=auto", "dtype=fp32", *overrides]
        monkeypatch.setattr("sys.argv", ["infer.py", *words])
        arguments, info = parse_arguments(), probe(clip)
        config = read_config(arguments, DEFAULTS)
        job = restoration.make_job(arguments, config, info, text_model.sampling)
        restorer = restoration.make_restorer(config, text_model, find_prompts(config))
        return identify(job, restorer, PLAIN.role)

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = ["prompt_file=prompts.txt"] if option == "prompt_blend" else []
    value, expected = OPTIONS[option]
    assert differ(identity(*before), identity(*before, f"{option}={value}")) == expected
