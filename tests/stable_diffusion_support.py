"""What the tests of Stable Diffusion's checkpoints share: a folder of each kind, and ways to edit and compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_video.models.open_model import FRAME_BY_FRAME, open_model
from ldm_video.models.video_model import VideoModel
from tests.once_support import once
from tests.sd_checkpoints import KINDS, write_pipeline


def open_still(name: Path | str, **options: str) -> VideoModel:
    return open_model(name, temporal=FRAME_BY_FRAME, **options)


def assert_same_weights(one: VideoModel, two: VideoModel) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def edit_json(path: Path, remove: str = "", **changes: object) -> None:
    """Change a stored config."""
    value = json.loads(path.read_text()) | changes
    value.pop(remove, None)
    path.write_text(json.dumps(value))


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


@once
def write_folders(factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each kind: made once, for all to read."""
    root = factory.mktemp("sd")
    return {kind: write_pipeline(root / kind, kind) for kind in KINDS}
