"""The house's floors: imports go strictly down, and heavy frameworks stay in their rooms.

Every ``import`` of every Python file outside ``tests`` is read (function bodies and ``TYPE_CHECKING`` included).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A part may import itself, any part on a lower floor, and the ground.
FLOORS = {
    "eval.bench": 5,
    "train": 4,
    "infer": 4,
    "ldm_video.training": 3,
    "ldm_video.restoration": 3,
    "ldm_video.convert": 3,
    "ldm_video.models": 2,
    "ldm_video.pipeline": 2,
    "data": 2,
    "eval": 2,
    "ldm_video.diffusion": 1,
    "ldm_video.video_io": 1,
    "ldm_video.motion": 0,
    "ldm_video.config": 0,
    "eval.metrics": 0,
    "ldm_video.core": -1,  # floor 0 as well, but the ground on which its neighbours stand
    "ldm_video": -2,  # the package's own __init__: nothing but a docstring and a version
}
OURS = {part.split(".")[0] for part in FLOORS}
NOTHING_OF_OURS = {"eval.metrics", "ldm_video.core", "ldm_video"}
OUTSIDE_THE_PACKAGE = {"data", "eval", "eval.bench", "eval.metrics", "infer", "train"}
ROOMS: dict[str, set[str]] = {
    "pytorch_lightning": {"ldm_video.training", "train"},
    "lightning": set(),  # the same framework under its other name
    "wandb": {"ldm_video.training", "train", "eval"},
}
NOT_THE_PROJECT = {"tests", "build", "dist", "outputs", "docs"}


def part_of(module: str) -> str | None:
    """The most specific part of the house that holds ``module``."""
    names = module.split(".")
    prefixes = (".".join(names[:length]) for length in range(len(names), 0, -1))
    return next((prefix for prefix in prefixes if prefix in FLOORS), None)


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line number and full dotted name of everything that ``source``, a module in ``package``, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def violation(importer: str, imported: str) -> str | None:
    """Why the part ``importer`` may not import the module ``imported``; ``None`` when it may."""
    library = imported.split(".")[0]
    if library in ROOMS and importer not in ROOMS[library]:
        return f"{library} is imported by {' and '.join(sorted(ROOMS[library])) or 'nobody'} alone"
    if library not in OURS:
        return None
    part = part_of(imported)
    if part == importer:
        return None
    if part is None:
        return f"{imported} has no floor"
    if importer in NOTHING_OF_OURS:
        return f"{importer} imports nothing else of ours"
    if importer.startswith("ldm_video") and part in OUTSIDE_THE_PACKAGE:
        return f"ldm_video never imports {part}"
    if FLOORS[part] >= FLOORS[importer]:
        return f"{importer} (floor {FLOORS[importer]}) imports {part} (floor {FLOORS[part]}), which is not below it"
    return None


def floor_errors(root: Path) -> list[str]:
    """``file:line: reason`` for every forbidden import under ``root``, and every file that has no floor."""
    errors = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] in NOT_THE_PROJECT or any(part.startswith(".") for part in relative.parts):
            continue
        names = list(relative.with_suffix("").parts)
        package = ".".join(names[:-1])
        module = package if names[-1] == "__init__" else ".".join(names)
        part = part_of(module)
        if part is None or (part == "ldm_video" and module != "ldm_video"):
            errors.append(f"{relative}: on no floor; give its part one in {Path(__file__).name}")
            continue
        for line, imported in imported_modules(path.read_text(encoding="utf-8"), package):
            if reason := violation(part, imported):
                errors.append(f"{relative}:{line}: {reason}")
    return errors


def test_imports_go_strictly_down() -> None:
    assert floor_errors(ROOT) == []


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("ldm_video/models/codec.py", "from ldm_video.pipeline import stream", "not below it"),
        ("ldm_video/models/codec.py", "from ..pipeline.stream import run", "not below it"),
        ("ldm_video/pipeline/stream.py", "def f():\n    from ldm_video.models.codec import Codec", "not below it"),
        ("ldm_video/diffusion/sampler.py", "import ldm_video.video_io.read", "not below it"),
        ("ldm_video/core/tensors.py", "from ldm_video import config", "imports nothing else of ours"),
        ("ldm_video/training/task.py", "from data.clips import Clips", "ldm_video never imports data"),
        ("ldm_video/training/task.py", "import train", "ldm_video never imports train"),
        ("ldm_video/config/load.py", "from eval.metrics import psnr", "ldm_video never imports eval.metrics"),
        ("eval/metrics/psnr.py", "from ldm_video.core.tensors import to_bytes", "imports nothing else of ours"),
        ("eval/run.py", "from ldm_video.pipeline.stream import run", "not below it"),
        ("infer.py", "import pytorch_lightning as pl", "alone"),
        ("ldm_video/pipeline/stream.py", "from ldm_video.restoration import run", "not below it"),
        ("ldm_video/restoration.py", "from ldm_video.training import stage", "not below it"),
        ("ldm_video/restoration.py", "from infer import main", "ldm_video never imports infer"),
        ("ldm_video/models/codec.py", "from pytorch_lightning import LightningModule", "alone"),
        ("ldm_video/__init__.py", "from ldm_video.core.errors import UserError", "imports nothing else of ours"),
        ("ldm_video/extras/thing.py", "", "on no floor"),
        ("tools/thing.py", "", "on no floor"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, source: str, reason: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    errors = floor_errors(tmp_path)
    assert len(errors) == 1
    assert errors[0].startswith(file)
    assert reason in errors[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("train.py", "import pytorch_lightning\nfrom data import clips\nfrom ldm_video.training import task"),
        ("infer.py", "def main():\n    from ldm_video.restoration import run"),
        ("ldm_video/restoration.py", "from ldm_video.pipeline.stream import run\nfrom ldm_video.models import bundle"),
        ("ldm_video/training/task.py", "from pytorch_lightning import LightningModule\nfrom .losses import l1"),
        ("ldm_video/config/load.py", "from ldm_video.core.errors import UserError"),
        ("data/degrade.py", "import cv2, torch\nfrom ldm_video.video_io import read"),
        ("eval/run.py", "from eval.metrics import psnr\nfrom ldm_video.video_io.read import frames"),
        ("eval/metrics/psnr.py", "import torch\nfrom eval.metrics.colour import luma"),
    ],
)
def test_a_lawful_import_is_let_through(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert floor_errors(tmp_path) == []
