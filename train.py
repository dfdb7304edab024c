"""Train: ``python train.py --config configs/train/tiny/codec.yaml data.root=FOLDER [key=value ...]``."""

from __future__ import annotations

import argparse
import logging
import netrc
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from torch.utils.data import DataLoader

from eval.metrics.backbones import MetricUnavailable
from ldm_video.config import build, load_config, missing_arguments, save_config
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.video_model import VideoModel
from ldm_video.training.order import ClipOrder

log = logging.getLogger("train")

SECTIONS = (
    "name", "output", "seed", "init_from", "model", "task", "data", "optimizer", "ema", "gradient_checkpointing",
    "trainer", "checkpoint_every", "logger", "publish",
)  # fmt: skip


def main() -> None:
    """Read the command line, build every part, fit, and save the model bundle."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(arguments.config, arguments.overrides, known=SECTIONS)
    if config.trainer.max_steps < 1:
        raise UserError("trainer.max_steps must be 1 or more: the learning rate is led down to it")
    pl.seed_everything(config.seed, verbose=False)
    model = build_model(config)
    task = build_task(config, model)
    if arguments.dry_run:
        print(OmegaConf.to_yaml(config, resolve=True))
        print(describe(model))
        return
    output = Path(config.output)
    last = output / "checkpoints" / "last.ckpt"
    # Our own checkpoint of this very run: a pickle, but one that was written here.
    resume = torch.load(last, map_location="cpu", weights_only=False) if last.exists() and not arguments.restart else {}
    done = resume.get("global_step", 0)
    loaders = build_loaders(config, done)  # before anything is written: a wrong folder must leave nothing behind
    trainer = build_trainer(config, output)
    save_config(config, output / "config.yaml")
    if resume:
        log.info("resuming from %s at step %d (use --restart to begin anew)", last, done)
    trainer.fit(task, **loaders, ckpt_path=str(last) if resume else None, weights_only=False)
    if resume and trainer.global_step == done:
        task.load_state_dict(resume["state_dict"])  # nothing was left to do: Lightning did not put the average in place
    if trainer.is_global_zero:
        save_bundle(model, output / "bundle")
        log.info("model bundle: %s", output / "bundle")
        if config.publish is not None:
            save_bundle(model, config.publish, torch.float16)
            log.info("published in half precision: %s", config.publish)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file of configs/train")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the model's size, stop")
    parser.add_argument("--restart", action="store_true", help="begin anew where a run of this name has a checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
    return parser.parse_intermixed_args()


def build_model(config: DictConfig) -> VideoModel:
    """The model of ``config.model``, or the bundle ``config.init_from``: exactly one of them."""
    if (config.get("model") is not None) == (config.init_from is not None):
        raise UserError("give either a model section or init_from=BUNDLE, and not both")
    model = build(config.model) if config.init_from is None else load_bundle(config.init_from)
    if config.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()
    return model.requires_grad_(True).train().to(memory_format=torch.channels_last)


def build_task(config: DictConfig, model: VideoModel) -> pl.LightningModule:
    """The stage's Lightning module around the model, or around its codec alone where the stage trains only that."""
    optimizer = build(config.optimizer)
    part = {"codec": model.codec} if "codec" in missing_arguments(config.task) else {"model": model}
    try:
        return build(config.task, **part, optimizer=optimizer)
    except MetricUnavailable as error:
        raise UserError(f"{error}; or leave it out with task.pixel_loss.perceptual=null") from error


def build_loaders(config: DictConfig, done: int) -> dict[str, Any]:
    """Training batches from step ``done`` on and, where the config names a ``data.val``, validation batches."""
    per_step = config.data.batch * config.trainer.get("accumulate_grad_batches", 1)
    order = ClipOrder(config.trainer.max_steps * per_step, done * per_step)
    loaders = {}
    for name in ("train", "val"):
        if name in config.data:
            dataset = build(config.data[name])
            try:
                loader = DataLoader(
                    dataset,
                    batch_size=config.data.batch,
                    sampler=order if name == "train" else None,
                    num_workers=config.data.workers,
                    pin_memory=torch.cuda.is_available(),
                    drop_last=name == "train",
                )
            except ValueError as error:
                raise UserError(f"data.batch or data.workers cannot be used: {error}") from error
            loaders[f"{name}_dataloaders"] = loader
    return loaders


def build_trainer(config: DictConfig, output: Path) -> pl.Trainer:
    """Lightning's trainer with checkpoints, weight averaging and a logger."""
    callbacks: list[pl.Callback] = [
        ModelCheckpoint(
            output / "checkpoints",
            every_n_train_steps=config.checkpoint_every,
            save_last=True,
            enable_version_counter=False,
        ),
        TQDMProgressBar(refresh_rate=10),
    ]
    if config.ema:
        callbacks.append(EMAWeightAveraging(decay=config.ema))
    logger = build_logger(config, output)
    try:
        # ClipOrder shares the clips out among processes itself.
        return build(
            config.trainer,
            callbacks=callbacks,
            logger=logger,
            default_root_dir=str(output),
            use_distributed_sampler=False,
        )
    except MisconfigurationException as error:
        raise UserError(f"the trainer section cannot be used here: {str(error).splitlines()[0]}") from error


def build_logger(config: DictConfig, output: Path) -> Logger:
    """W&B (offline where there is no key) or CSV."""
    if config.logger == "csv":
        return CSVLogger(output, name="log")
    if config.logger == "wandb":
        facts: Any = OmegaConf.to_container(config, resolve=True)
        offline = not has_wandb_key()
        return WandbLogger(name=config.name, save_dir=output, project="ldm-video", offline=offline, config=facts)
    raise UserError(f"unknown logger '{config.logger}'; use wandb or csv")


def has_wandb_key() -> bool:
    """Whether there is a W&B key in the environment or from `wandb login`, without waking wandb's own session."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def describe(model: VideoModel) -> str:
    """Parameters of each part, in millions."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return "\n".join(f"{name}: {count / 1e6:.2f}M parameters" for name, count in parts.items())


if __name__ == "__main__":
    run_cli(main)
