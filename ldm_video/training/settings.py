"""Values of a training configuration that would end in a traceback, or in another folder, hours or seconds later."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from ldm_video.core.checks import number, sides, whole
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
    whole("trainer.max_steps", config.trainer.max_steps, 1)  # the learning rate is led down to it
    longest = config.trainer.get("max_time")
    if isinstance(longest, int | float):  # YAML counts 10:00:00:00 in sixties
        raise UserError(
            f"trainer.max_time is {longest!r}, which YAML does not read as text; quote it for the shell and for YAML: "
            "\"trainer.max_time='DD:HH:MM:SS'\""
        )
    whole("seed", config.seed, 0, LARGEST_SEED)
    sides("data.size", config.data.size)
    whole("data.frames", config.data.frames, 1)
    whole("data.batch", config.data.batch, 1)
    whole("trainer.accumulate_grad_batches", config.trainer.get("accumulate_grad_batches", 1), 1)
    whole("checkpoint_every", config.checkpoint_every, 1)
    if config.ema is not None and config.ema is not False:  # those mean no average
        number("ema", config.ema, 0, 1)
