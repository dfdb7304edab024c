"""Loggers for a run's metrics, pictures and bundle: W&B (offline without a key), TensorBoard, CSV, or several."""

from __future__ import annotations

import importlib.util
import netrc
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path

PROJECT = "ldm-video"
KINDS = ("wandb", "tensorboard", "csv")
WANDB_ID = "wandb_id"  # file in the output folder


def build_loggers(kinds: str | Sequence[str], name: str, output: Path, anew: bool = False) -> list[Logger]:
    """Build the loggers ``kinds`` (``wandb``, ``tensorboard``, ``csv``, or a list of these), which write to ``output``.

    A resumed run continues its W&B run, unless ``anew``. ``WANDB_MODE`` and ``WANDB_RUN_ID`` take precedence.

    Raises ``UserError`` for an empty ``kinds``, an unknown kind and a kind whose package is missing. Nothing is
    written yet.
    """
    if not kinds:
        raise UserError(f"the configuration's logger names none; use {', '.join(KINDS)}, or a list of them")
    loggers: list[Logger] = []
    for kind in [kinds] if isinstance(kinds, str) or not isinstance(kinds, Sequence) else kinds:
        if kind == "csv":
            loggers.append(CSVLogger(output, name="log", flush_logs_every_n_steps=1))  # a kill loses no line
        elif kind == "wandb":
            if importlib.util.find_spec("wandb") is None:
                raise UserError("the wandb logger needs its package: pip install wandb; or use logger=csv")
            offline = not os.environ.get("WANDB_MODE") and not has_wandb_key()
            run = os.environ.get("WANDB_RUN_ID") or (None if anew else _read_id(output)) or secrets.token_hex(4)
            loggers.append(WandbLogger(name=name, save_dir=output, project=PROJECT, offline=offline, version=run))
        elif kind == "tensorboard":
            if importlib.util.find_spec("tensorboard") is None:
                raise UserError(
                    "the tensorboard logger needs its package: pip install 'ldm-video[tensorboard]'; or use logger=csv"
                )
            loggers.append(TensorBoardLogger(output, name="tensorboard", default_hp_metric=False))
        else:
            raise UserError(f"unknown logger '{kind}'; use one of {', '.join(KINDS)}, or a list of them")
    return loggers


def keep_wandb_id(loggers: Iterable[Logger], output: Path) -> None:
    """Save the id of the W&B run, so that a resumed run can continue it; a no-op without W&B."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            with atomic_path(output / WANDB_ID) as temporary:
                temporary.write_text(f"{logger.version}\n", encoding="utf-8")


def _read_id(output: Path) -> str | None:
    try:
        return (output / WANDB_ID).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def has_wandb_key() -> bool:
    """Return whether there is a W&B key in the environment or from `wandb login`, without importing wandb."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def log_media(loggers: Iterable[Logger], name: str, strip: Path, video: Path, step: int) -> None:
    """Log a picture and a video file as ``name/strip`` and ``name/video``.

    TensorBoard gets only the picture (its videos are GIFs and need another package); CSV gets neither.
    """
    caption = [strip.stem]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"{name}/strip", [str(strip)], step=step, caption=caption)
            logger.log_video(f"{name}/video", [str(video)], step=step, caption=caption, format=["mp4"])
        elif isinstance(logger, TensorBoardLogger):
            pixels = cv2.cvtColor(cv2.imread(str(strip)), cv2.COLOR_BGR2RGB)  # h w 3
            logger.experiment.add_image(f"{name}/strip", pixels, step, dataformats="HWC")


def log_bundle(loggers: Iterable[Logger], folder: Path, name: str) -> None:
    """Log the finished bundle as the artifact ``name`` and finish the run; W&B only.

    The files are not copied: they must stay in ``folder`` until ``wandb sync`` has uploaded an offline run.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb  # takes a second, and other loggers do not need it

            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="model")
            artifact.add_dir(str(folder), policy="immutable")
            logger.experiment.log_artifact(artifact)
            logger.experiment.finish()
