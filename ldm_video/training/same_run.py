"""Check that a checkpoint belongs to the requested run, by the configuration saved in it, or in the file beside it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ldm_video.config import load_config
from ldm_video.core.errors import UserError
from ldm_video.core.files import hash_files
from ldm_video.models.open_model import find_model

# Keys (or prefixes) that may change when a run is resumed: where it runs, how long, how fast and what is logged. All
# others affect the weights, or would be silently ignored: the learning rate, say, is restored from the checkpoint.
FREE = (
    "name", "output", "logger", "watch", "publish", "checkpoint_every", "compile", "attention",
    "gradient_checkpointing", "data.workers", "data.cache", "data.train.clips.cache", "data.val",
)  # fmt: skip
FREE_IN_TRAINER = (
    "max_steps", "max_time", "accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "profiler",
    "val_check_interval", "check_val_every_n_epoch", "limit_val_batches", "num_sanity_val_steps", "inference_mode",
    "enable_progress_bar", "enable_model_summary", "enable_autolog_hparams", "benchmark", "deterministic",
    "detect_anomaly",
)  # fmt: skip
RUN = "run"  # the configuration in a checkpoint
ORIGIN = "origin"  # the digest of what `init_from` held, there
_ABSENT = "absent"
# Lightning's defaults for keys that are missing or null.
_DEFAULTS = {
    f"trainer.{name}": parameter.default for name, parameter in inspect.signature(pl.Trainer).parameters.items()
} | {"trainer.precision": "32-true", "trainer.gradient_clip_algorithm": "norm", "trainer.limit_train_batches": 1.0}


class KeepsConfig(pl.Callback):
    """Store ``config``, resolved and as plain containers, in each checkpoint, and with it :func:`origin_of` it."""

    def __init__(self, config: Mapping[str, Any], origin: str | None = None) -> None:
        self.config = dict(config)
        self.origin = origin

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RUN] = self.config
        checkpoint[ORIGIN] = self.origin


def origin_of(config: DictConfig) -> str | None:
    """Hash the files that ``init_from`` names (of a hub name, those in its cache); None if it is null."""
    return None if config.init_from is None else hash_files(find_model(config.init_from))


def check_same_origin(saved: Path, config: DictConfig, origin: str | None, kept: str | None) -> None:
    """Raise ``UserError`` if ``init_from`` holds something else than when the run began.

    All weights come from the checkpoint, so a predecessor that was trained again would be ignored. Nothing is compared
    without ``kept``, which old checkpoints lack, or without the file ``saved``.
    """
    if kept is not None and origin != kept and saved.is_file():
        raise UserError(
            f"init_from={config.init_from} has changed since this run began; pass --restart or choose another "
            f"output=FOLDER (remove {saved} to resume from the checkpoint anyway)"
        )


def check_same_run(
    saved: Path, config: DictConfig, kept: Mapping[str, Any] | None = None, free: tuple[str, ...] = FREE
) -> None:
    """Raise ``UserError`` naming the first key that differs from the checkpoint's configuration but must not.

    The checkpoint's configuration is ``kept``, which is stored in it, or for older checkpoints the file ``saved``. If
    that file does not exist, nothing is compared: users remove it to resume with a change.
    """
    if not saved.is_file():
        return
    before = dict(_leaves(_read(saved) if kept is None else kept))
    now = dict(_leaves(OmegaConf.to_container(config, resolve=True)))
    for key in sorted(before.keys() | now.keys()):
        old, new = _value(before, key), _value(now, key)
        if not (_is_free(key, free) or _same(key, old, new)):
            raise UserError(
                f"the checkpoint in {saved.parent} was trained with {key}={old}, and now it is {new}; give the old "
                f"value, another output=FOLDER, or --restart (remove {saved} to resume with the change anyway)"
            )


def _read(saved: Path) -> Any:
    try:
        return OmegaConf.to_container(load_config(saved), resolve=True)
    except UserError as error:
        raise UserError(
            f"{error}; it says what the checkpoint beside it was trained with: rewrite it, remove it to "
            "resume anyway, or give --restart"
        ) from error


def check_fits(state: Mapping[str, Tensor], module: nn.Module, where: Path) -> None:
    """Raise ``UserError`` naming the first weight by which the checkpoint ``where`` and ``module`` differ.

    A weight may be missing, unexpected or of another shape.
    """
    own = module.state_dict()
    for key in sorted(state.keys() ^ own.keys()):
        place = "has no place in" if key in state else "is not there for"
        raise UserError(f"{where}: weight '{key}' {place} this model; give another output=FOLDER or --restart")
    for key, value in state.items():
        if value.shape != own[key].shape:
            shapes = f"{list(value.shape)}, in this model {list(own[key].shape)}"
            raise UserError(f"{where}: weight '{key}' has shape {shapes}; give another output=FOLDER or --restart")


def _is_free(key: str, free: tuple[str, ...]) -> bool:
    names = (*free, *(f"trainer.{name}" for name in FREE_IN_TRAINER))
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _value(leaves: Mapping[str, Any], key: str) -> Any:
    value = leaves.get(key, _ABSENT)
    return _DEFAULTS.get(key, value) if value is None or value is _ABSENT else value


def _same(key: str, old: Any, new: Any) -> bool:
    """Compare two values; for ``limit_train_batches`` and the like, 1 is one batch, but 1.0 is all of them."""
    batches = key.startswith("trainer.") and key.endswith("_batches") and 1 in (old, new)
    return bool(old == new and (not batches or isinstance(old, int) == isinstance(new, int)))


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every leaf (anything but a non-empty mapping)."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}".lstrip("."))
    else:
        yield name, node
