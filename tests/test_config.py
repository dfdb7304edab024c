"""Configuration files: merging, overrides, building, and one clear line for every mistake."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf.errors import ConfigAttributeError

from ldm_video.config import build, check_target, load_config, missing_arguments, save_config
from ldm_video.core.errors import UserError

BASE = """
data:
  root: ???
  size: [64, 96]
train:
  lr: 1e-4
  betas: {first: 0.9, second: 0.99}
"""
CHILD = """
defaults:
  - base.yaml
  - model: parts/model.yaml
data:
  size: [32, 32]
crop: ${data.size}
"""
MODEL = """
scheduler: {target: diffusers.DDIMScheduler, num_train_timesteps: 10}
"""


@pytest.fixture
def child(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "parts" / "model.yaml").write_text(MODEL)
    (tmp_path / "child.yaml").write_text(CHILD)
    return tmp_path / "child.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_a_plus_adds_what_the_file_leaves_at_its_default(child: Path) -> None:
    config = load_config(child, ["data.root=/clips", "+data.fps=25", "+train.betas.third=0.5", "+data.size=[8, 8]"])
    assert (config.data.fps, config.train.betas.third, config.crop) == (25, 0.5, [8, 8])


@pytest.mark.parametrize("override", ["+fps=25", "+dat.fps=25", "+data.size.fps=25"])
def test_a_plus_needs_a_section(child: Path, override: str) -> None:
    with pytest.raises(UserError, match="unknown key"):
        load_config(child, ["data.root=/clips", override])


# --- reading -----------------------------------------------------------------------------------------------------


def test_the_file_wins_over_its_defaults_and_overrides_win_over_the_file(child: Path) -> None:
    config = load_config(child, ["data.root=/clips", "train.lr=2e-3", "data.size.1=48"])
    assert config == {
        "data": {"root": "/clips", "size": [32, 48]},
        "train": {"lr": 0.002, "betas": {"first": 0.9, "second": 0.99}},
        "model": {"scheduler": {"target": "diffusers.DDIMScheduler", "num_train_timesteps": 10}},
        "crop": [32, 48],
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("a=b", "a=b"),
        ("[1, 2]", [1, 2]),
        ("", None),
        ("'7'", "7"),
        ("${data.size}", [32, 32]),
    ],
)
def test_an_override_is_read_as_yaml(child: Path, text: str, value: object) -> None:
    assert load_config(child, ["data.root=x", f"train.lr={text}"]).train.lr == value


def test_a_mapping_override_is_merged_key_by_key(child: Path) -> None:
    config = load_config(child, ["data.root=x", "train.betas={second: 0.5}"])
    assert config.train.betas == {"first": 0.9, "second": 0.5}


def test_a_mapping_override_with_a_target_replaces_the_part(child: Path) -> None:
    part = "scheduler={target: diffusers.DDPMScheduler, beta_end: 0.5}"
    wanted = {"target": "diffusers.DDPMScheduler", "beta_end": 0.5}
    for override in (f"model.{part}", f"+model.{part}", f"model={{{part.replace('=', ': ', 1)}}}"):
        assert load_config(child, ["data.root=x", override]).model == {"scheduler": wanted}


KNOWN = ("data.root", "data.size", "train", "model", "crop")


@pytest.mark.parametrize(
    ("line", "overrides", "key", "where"),
    [
        ("  frame: 8", [], "data.frame", "child.yaml"),
        ("", ["+data.siz=8"], "data.siz", "an override of"),
        ("", ["+data.frame=8"], "data.frame", "an override of"),
    ],
)
def test_an_unknown_key_of_a_closed_section_is_one_clear_line(
    child: Path, line: str, overrides: list[str], key: str, where: str
) -> None:
    child.write_text(child.read_text().replace("data:\n", f"data:\n{line}\n", 1))
    with pytest.raises(UserError, match=f"unknown key '{key}' in .*{where}.*; nearest keys: data\\.(size|root)"):
        load_config(child, ["data.root=x", *overrides], known=KNOWN)
    with pytest.raises(UserError, match=r"'data' in .* must be a section of keys"):
        load_config(child, ["data=5"], known=[*KNOWN, key])
    kept = load_config(child, ["data.root=x", *overrides], known=[*KNOWN, key])
    assert kept.train.lr == 1e-4  # a section of which no key is named is open


def test_reading_an_unknown_key_raises(child: Path) -> None:
    config = load_config(child, ["data.root=x"])
    with pytest.raises(ConfigAttributeError):
        _ = config.data.roott


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.rot=x"], ["'data.rot'", "child.yaml", "data.root"]),
        (["data={rot: x}"], ["'data.rot'", "child.yaml", "data.root"]),
        (["data.size.2=1"], ["'data.size.2'", "data.size.1"]),
        (["train.lr.x=1"], ["'train.lr.x'", "train.lr"]),
        (["zzzzzzzz=1"], ["'zzzzzzzz'", "data", "train", "model"]),
        (["defaults=[]"], ["'defaults'"]),
        (["lr"], ["'lr'", "key=value"]),
        (["=1"], ["'=1'", "key=value"]),
        (["data..root=1"], ["'data..root=1'", "key=value"]),
        (["train.lr=[1"], ["'train.lr=[1'", "invalid value"]),
        (["train.lr=a\x1b[A"], ["invalid value", "unacceptable character"]),  # an arrow key
        (["train.lr=0x_"], ["'train.lr=0x_'", "invalid value"]),
        (["train.lr=${"], ["'train.lr=${'", "invalid value"]),
        (["data.root=x", "train.lr=${nowhere}"], ["child.yaml", "nowhere"]),
        ([], ["child.yaml", "'data.root'", "data.root=VALUE"]),
    ],
)
def test_a_bad_override_is_one_clear_line(child: Path, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(child, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@given(st.sampled_from(["data", "data.root", "rate"]) | st.text(alphabet="adeort.", min_size=1, max_size=9))
def test_an_override_changes_a_key_that_exists_or_fails(key: str) -> None:
    with TemporaryDirectory() as folder:
        path = write(Path(folder), "data: {root: 1}\nrate: 2")
        expected = {
            "data": {"data": 5, "rate": 2},
            "data.root": {"data": {"root": 5}, "rate": 2},
            "rate": {"data": {"root": 1}, "rate": 5},
        }
        if key in expected:
            assert load_config(path, [f"{key}=5"]) == expected[key]
        else:
            with pytest.raises(UserError):
                load_config(path, [f"{key}=5"])


def test_a_mandatory_value_may_stand_when_the_caller_says_so(child: Path) -> None:
    config = load_config(child, allow_missing=True)
    assert config.train.lr == 1e-4
    assert "root" not in config.data  # OmegaConf's sign for a missing mandatory value


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "line 2"),
        ("a: 1\na: 2", "duplicate key"),
        ("- 1\n- 2", "mapping"),
        ("defaults: other.yaml", "'defaults' must be a list"),
        ("defaults: [3]", "FILE.yaml"),
        ("defaults: [absent.yaml]", "absent.yaml does not exist"),
        ("defaults: [config.yaml]", "come back"),
        ("a: ${", "config.yaml"),
        ("a: ${b}", "'b'"),
        ("a: x\x07", r"config\.yaml is not a readable YAML file: unacceptable character"),
        ("a: 0x_", r"config\.yaml is not a readable YAML file"),
        ("a: " + "[" * 2000 + "]" * 2000, r"config\.yaml is not a readable YAML file"),
        ("defaults: ${b}", "cannot read its 'defaults': .*'b'"),
        ("defaults: ['${b}.yaml']", "cannot read its 'defaults': .*'b'"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=part):
        load_config(path)


def test_a_missing_file_and_a_binary_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml does not exist"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "clip.mp4").write_bytes(b"\x00\xff\xfe\x81" * 8)
    with pytest.raises(UserError, match=r"clip\.mp4 is not a readable YAML file"):
        load_config(tmp_path / "clip.mp4")


# --- saving ------------------------------------------------------------------------------------------------------


def test_a_saved_configuration_stands_alone(child: Path, tmp_path: Path) -> None:
    config = load_config(child, ["data.root=/clips"])
    saved = tmp_path / "run" / "config.yaml"
    save_config(config, saved)
    plain = yaml.safe_load(saved.read_text())
    assert plain["crop"] == [32, 32]  # resolved: no interpolation is left
    assert "defaults" not in plain
    assert load_config(saved) == config
    assert [path.name for path in saved.parent.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("root", ["/clips/${x}", r"C:\${x}", "a$b", "\\", "${"])
def test_saved_text_is_no_interpolation(child: Path, tmp_path: Path, root: str) -> None:
    escaped = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", root)
    config = load_config(child, [f"data.root='{escaped}'"])
    assert config.data.root == root
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").data.root == root


# --- building ----------------------------------------------------------------------------------------------------


def test_parts_are_built_from_the_inside_out(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        steps: 7
        part:
          target: functools.partial
        scheduler: {target: diffusers.DDIMScheduler, num_train_timesteps: "${steps}"}
        optimiser: {target: torch.optim.AdamW, lr: 0.5, partial: true}
        """,
    )
    config = load_config(path)
    assert build(config.scheduler).config.num_train_timesteps == 7
    optimiser = build(config.optimiser)
    assert isinstance(optimiser, partial)
    assert optimiser.keywords == {"lr": 0.5}
    with pytest.raises(UserError, match="not allowed"):
        build(config.part)


def test_nested_targets_are_built_before_the_outer_one() -> None:
    callback = {"target": "pytorch_lightning.callbacks.ModelCheckpoint", "monitor": "loss"}
    node = {"target": "ldm_video.config.build", "node": {"kept": [callback]}, "partial": True}
    built = build(node).keywords["node"]["kept"][0]
    assert type(built).__name__ == "ModelCheckpoint"
    assert built.monitor == "loss"


def test_injected_arguments_reach_the_outermost_target() -> None:
    import torch

    weight = torch.nn.Parameter(torch.zeros(2))
    optimiser = build({"target": "torch.optim.SGD", "lr": 0.25}, params=[weight])
    assert optimiser.param_groups[0]["params"][0] is weight
    assert optimiser.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"target": "os.system", "command": "true"}, "not allowed"),
        ({"target": "ldm_video_evil.f"}, "not allowed"),
        ({"target": "ldm_video.core.files.os.remove"}, "unknown model part"),
        ({"target": "ldm_video.core.files.contextmanager"}, "not allowed: contextlib"),
        ({"target": "ldm_video.core.files._explain"}, "unknown model part"),
        ({"target": "ldm_video.core.errors.UserError.__init__.__globals__"}, "unknown model part"),
        ({"target": "ldm_video.core.absent.Thing"}, "unknown model part 'ldm_video.core.absent.Thing'"),
        ({"target": "diffusers.NoSuchModel"}, "unknown model part 'diffusers.NoSuchModel'"),
        ({"target": "ldm_video.core.files"}, "neither a class nor a function"),
        ({"target": 3}, "no 'target"),
        ({"lr": 3}, "no 'target"),
        ({"target": "torch.optim.AdamW", "learning_rate": 1}, "torch.optim.AdamW does not take 'learning_rate'"),
        ({"target": "torch.optim.AdamW", "weight_decy": 1}, "weight_decay"),
        ({"target": "torch.optim.AdamW", "lr": 1}, "torch.optim.AdamW needs 'params'"),
        ({"target": "torch.optim.AdamW", "partial": "yes"}, "true or false"),
        ({"target": "diffusers.DDIMScheduler", "trained_betas": {"target": "os.getcwd"}}, "not allowed"),
        ({"target": "diffusers.AutoencoderKL", "down_block_types": ["Absent"]}, "cannot build diffusers.AutoencoderKL"),
    ],
)
def test_a_bad_part_is_one_clear_line(node: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(node)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_argument_cannot_come_from_both_the_file_and_the_program() -> None:
    with pytest.raises(UserError, match=r"'lr' of torch\.optim\.AdamW is given by the program"):
        build({"target": "torch.optim.AdamW", "lr": 1}, lr=2, params=[])


def test_check_target_calls_nothing_and_tells_what_is_missing(tmp_path: Path) -> None:
    node = {"target": "ldm_video.core.files.atomic_path"}
    assert check_target(node).__name__ == "atomic_path"
    assert missing_arguments(node) == ["path"]
    assert missing_arguments({**node, "path": str(tmp_path / "x")}) == []
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dependency_is_told_apart_from_an_unknown_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ldm_video.core

    (tmp_path / "needs_more.py").write_text("import a_library_that_is_not_there\nclass Part: ...\n")
    monkeypatch.setattr(ldm_video.core, "__path__", [*ldm_video.core.__path__, str(tmp_path)])
    with pytest.raises(UserError, match=r"cannot be imported.*a_library_that_is_not_there"):
        build({"target": "ldm_video.core.needs_more.Part"})
