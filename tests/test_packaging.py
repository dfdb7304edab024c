"""The pins stand in three files for three installers; they must be the same pins, and all the code must be packaged."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yaml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


def requirements() -> dict[str, Requirement]:
    """Every requirement of pyproject.toml that an ordinary installation takes."""
    wanted = [Requirement(line) for line in (*PROJECT["dependencies"], "ldm-video[dev]")]
    found = {}
    while wanted:
        requirement = wanted.pop()
        if requirement.name == PROJECT["name"]:  # an extra of ours
            extras = PROJECT["optional-dependencies"]
            wanted += [Requirement(line) for extra in requirement.extras for line in extras[extra]]
        else:
            found[requirement.name] = requirement
    return found


def conda_pins() -> dict[str, str]:
    pip = next(entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))
    return dict(line.split("==") for line in pip if "==" in line)


def test_conda_installs_what_pip_installs() -> None:
    assert sorted(conda_pins()) == sorted(requirements())
    for name, version in conda_pins().items():
        assert requirements()[name].specifier.contains(version), f"{name} {version} is outside pyproject.toml's range"


def test_make_and_conda_take_the_same_torch() -> None:
    pins = conda_pins()
    assert f"torch=={pins['torch']} torchvision=={pins['torchvision']}" in MAKEFILE


def test_the_files_of_weights_are_pinned_alike_everywhere() -> None:
    pinned = re.compile(r"--no-deps (\S+==\S+) (\S+==[\d.]+)")
    in_make, in_conda = pinned.search(MAKEFILE), pinned.search((ROOT / "environment.yaml").read_text())
    assert in_make is not None and in_conda is not None
    assert in_make.groups() == in_conda.groups()


@pytest.mark.parametrize("package", ["ldm_video", "data", "eval"])
def test_every_folder_of_code_is_a_package(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert folders, f"{package} holds no code"
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_continuous_integration_runs_the_documented_commands() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "not executable"
    commands = script.read_text().splitlines()
    assert "make test" in commands
    assert "make check" in commands
