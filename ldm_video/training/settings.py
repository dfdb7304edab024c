"""Early checks of configuration values that would otherwise fail, or write to a wrong folder, possibly hours later."""

from __future__ import annotations

import math

from omegaconf import DictConfig, OmegaConf

from ldm_video.core.checks import number, sides, whole
from ldm_video.core.errors import UserError

LARGEST_SEED = 2**32 - 1  # numpy's
# Keys that become a folder or a name.
TEXTS = ("name", "output")
TEXTS_OR_NULL = ("init_from", "publish", "data.cache")
SECTIONS = ("task", "optimizer", "trainer")
SWITCHES = ("compile", "gradient_checkpointing")
# Integers and their minima.
COUNTS = {
    "trainer.max_steps": 1,  # the learning rate decays until then
    "data.frames": 1,
    "data.batch": 1,
    "data.workers": 0,
    "checkpoint_every": 1,
    "trainer.accumulate_grad_batches": 1,
}
# The same for keys that may be missing or null.
OPTIONAL_COUNTS = {"trainer.log_every_n_steps": 0, "task.pixel_from_step": 0}
OPTIONAL_WEIGHTS = ("trainer.gradient_clip_val", "task.latent_weight")


def check_settings(config: DictConfig) -> None:
    """Check the values that no component checks when it is built. Raises ``UserError`` naming the first bad one."""
    for key in SECTIONS:
        if not isinstance(config.get(key), DictConfig):
            raise UserError(f"'{key}' is {config.get(key)!r}; it must be a section of keys")
    for key in (*TEXTS, *TEXTS_OR_NULL):
        value = OmegaConf.select(config, key)
        if not isinstance(value, str) and not (value is None and key in TEXTS_OR_NULL):
            raise UserError(
                f"{key} is {value!r}, which YAML does not read as text; quote it for the shell and for YAML: "
                f"\"{key}='TEXT'\""
            )
    longest = config.trainer.get("max_time")
    if isinstance(longest, int | float):  # YAML reads 10:00:00:00 as a sexagesimal number
        raise UserError(
            f"trainer.max_time is {longest!r}, which YAML does not read as text; quote it for the shell and for YAML: "
            "\"trainer.max_time='DD:HH:MM:SS'\""
        )
    whole("seed", config.seed, 0, LARGEST_SEED)
    sides("data.size", config.data.size)
    for key, least in COUNTS.items():
        whole(key, OmegaConf.select(config, key, default=least), least)
    for key in SWITCHES:
        if OmegaConf.select(config, key) not in (True, False, None):
            raise UserError(f"{key} is {OmegaConf.select(config, key)!r}; give true or false")
    for key, least in OPTIONAL_COUNTS.items():
        if (value := OmegaConf.select(config, key)) is not None:
            whole(key, value, least)
    for key in OPTIONAL_WEIGHTS:
        if (value := OmegaConf.select(config, key)) is not None:
            number(key, value, 0, math.inf)
    if config.ema is not None and config.ema is not False:  # both mean no average
        number("ema", config.ema, 0, 1)
