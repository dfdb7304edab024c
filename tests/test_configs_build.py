"""Every YAML in ``configs/`` loads, every part that it names exists and takes its arguments, and can be built.

Networks are built on the ``meta`` device (all of their constructor, none of their memory), so that a full Stable
Diffusion UNet costs milliseconds; everything else is built as a run would build it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ldm_video.config import build, check_target, load_config, missing_arguments
from ldm_video.core.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
NAMES = [str(path.relative_to(CONFIGS)) for path in FILES]


def load_filled(path: Path, folder: Path) -> DictConfig:
    """The configuration with ``folder`` in place of every mandatory value (they are all paths of the user's)."""
    missing = OmegaConf.missing_keys(load_config(path, allow_missing=True))
    return load_config(path, [f"{key}={folder}" for key in sorted(missing)])


def outermost_parts(node: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a ``target`` that no other part contains, with its dotted name."""
    if isinstance(node, dict) and "target" in node:
        yield name or ".", node
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from outermost_parts(value, f"{name}.{key}".lstrip("."))


def every_part(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a ``target``, at any depth."""
    if isinstance(node, dict) and "target" in node:
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from every_part(value)


def is_network(node: dict[str, Any]) -> bool:
    target = check_target(node)
    return inspect.isclass(target) and issubclass(target, torch.nn.Module)


def needs_an_injection(node: dict[str, Any]) -> bool:
    """Whether the program has to give an argument that this part cannot be built without."""
    return not node.get("partial", False) and bool(missing_arguments(node))


def test_every_kind_of_configuration_is_there() -> None:
    kinds = {name.split("/")[0] for name in NAMES}
    assert {"model", "train", "infer", "debug"} <= kinds


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_target_exists_and_takes_its_arguments(path: Path, tmp_path: Path) -> None:
    config = OmegaConf.to_container(load_filled(path, tmp_path), resolve=True)
    for part in every_part(config):
        check_target(part)  # raises a UserError that names the target and the key


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "model"], ids=lambda path: path.name)
def test_a_model_file_is_a_mapping_of_parts(path: Path) -> None:
    config = OmegaConf.to_container(load_config(path, allow_missing=True), resolve=True)
    assert isinstance(config, dict)
    assert list(outermost_parts(config)), f"{path} names no part"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_part_that_needs_nothing_else_is_built(
    path: Path, write_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_video(tmp_path / "clips" / "clip.mp4", frames=16, size=(576, 640))
    (tmp_path / "data").symlink_to(CONFIGS.parent / "data")  # a config may name the sample
    monkeypatch.chdir(tmp_path)  # loggers and checkpoints may create their folders here,
    monkeypatch.setenv("HOME", str(tmp_path))  # and caches theirs there
    config = OmegaConf.to_container(load_filled(path, clip.parent), resolve=True)
    for name, part in outermost_parts(config):
        if needs_an_injection(part):
            continue
        with torch.device("meta" if is_network(part) else "cpu"):
            built = build(part)
        target = check_target(part)
        expected = functools.partial if part.get("partial") else target if inspect.isclass(target) else object
        assert isinstance(built, expected), f"{name} is a {type(built).__name__}"


def test_the_walk_sees_a_wrong_argument_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a:\n  - deep: {target: torch.optim.AdamW, inner: {target: diffusers.DDIMScheduler, betas: 1}}\n")
    parts = list(every_part(OmegaConf.to_container(load_config(path))))
    assert [part["target"] for part in parts] == ["torch.optim.AdamW", "diffusers.DDIMScheduler"]
    for part, key in zip(parts, ("inner", "betas"), strict=True):
        with pytest.raises(UserError, match=f"does not take '{key}'"):
            check_target(part)
