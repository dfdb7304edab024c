"""Values of a training configuration that would end in a traceback, or in another folder, hours or seconds later."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm_video.core.errors import UserError

LARGEST_SEED = 2**32 - 1  # numpy's
# What becomes a folder or a name there.
TEXTS = ("name", "output")
TEXTS_OR_NULL = ("publish", "data.cache")


def check_settings(config: DictConfig) -> None:
    """Look at the values that no part checks when it is built. Raises ``UserError`` naming the first bad one."""
    for key in (*TEXTS, *TEXTS_OR_NULL):
        value = OmegaConf.select(config, key)
        if not isinstance(value, str) and not (value is None and key in TEXTS_OR_NULL):
            raise UserError(
                f"{key} is {value!r}, which YAML does not read as text; quote it for the shell and for YAML: "
                f"\"{key}='TEXT'\""
            )
    if not _is_whole(config.trainer.max_steps, 1):
        raise UserError("trainer.max_steps must be 1 or more: the learning rate is led down to it")
    longest = config.trainer.get("max_time")
    if isinstance(longest, int | float):  # YAML counts 10:00:00:00 in sixties
        raise UserError(
            f"trainer.max_time is {longest!r}, which YAML does not read as text; quote it for the shell and for YAML: "
            "\"trainer.max_time='DD:HH:MM:SS'\""
        )
    if not _is_whole(config.seed, 0) or config.seed > LARGEST_SEED:
        raise UserError(f"seed is {config.seed!r}; give a whole number from 0 to {LARGEST_SEED}")
    if not _is_whole(config.data.batch, 1):
        raise UserError(f"data.batch is {config.data.batch!r}; the batch_size is a whole number of clips, 1 or more")
    gathered = config.trainer.get("accumulate_grad_batches", 1)
    if not _is_whole(gathered, 1):
        raise UserError(f"trainer.accumulate_grad_batches is {gathered!r}; give a whole number, 1 or more")
    if config.ema is not None and config.ema is not False and not _is_share(config.ema):
        raise UserError(f"ema is {config.ema!r}; give a number from 0 to 1 (0.999, say), or null for no average")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
