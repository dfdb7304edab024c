"""What the tests of conversion share: a checkpoint, its bundle and a motion adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import MotionAdapter

import ldm_video.convert as convert
from tests.cli_support import call
from tests.model_support import perturb
from tests.once_support import once
from tests.sd_checkpoints import KINDS, write_pipeline

HEADS = 4


def motion_adapter(**changes: Any) -> MotionAdapter:
    torch.manual_seed(7)
    widths = {"block_out_channels": KINDS["sd15"].widths, "motion_num_attention_heads": HEADS}
    adapter = MotionAdapter(**{**widths, "motion_norm_num_groups": 8, **changes})
    perturb(adapter, 0.1)
    return adapter


@once
def write_models(factory: pytest.TempPathFactory) -> Path:
    """``sd15`` of diffusers, the bundle ``bundle`` of it, and the motion adapter ``motion``: made once, to be read."""
    root = factory.mktemp("convert")
    write_pipeline(root / "sd15", "sd15")
    assert call(convert, "to-bundle", root / "sd15", root / "bundle", "--head-dim", 16) == 0
    motion_adapter().save_pretrained(root / "motion")
    return root
