"""Train: ``python train.py --config configs/train/tiny/codec.yaml data.root=FOLDER [key=value ...]``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from torch.utils.data import DataLoader

from eval.metrics.backbones import MetricUnavailable
from ldm_video.config import build, load_config, save_config
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.video_model import VideoModel
from ldm_video.training.callbacks import DrawAnew

log = logging.getLogger("train")


def main() -> None:
    """Read the command line, build every part, fit, and save the model bundle."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(arguments.config, arguments.overrides)
    pl.seed_everything(config.seed, verbose=False)
    model = build_model(config)
    task = build_task(config, model)
    if arguments.dry_run:
        print(OmegaConf.to_yaml(config, resolve=True))
        print(describe(model))
        return
    loaders = build_loaders(config)  # first: a wrong folder must leave nothing behind
    output = Path(config.output)
    trainer = build_trainer(config, output)
    save_config(config, output / "config.yaml")
    last = output / "checkpoints" / "last.ckpt"
    if last.exists() and not arguments.restart:
        log.info("resuming from %s (use --restart to begin anew)", last)
    resume = str(last) if last.exists() and not arguments.restart else None
    # Our own checkpoint of this very run; Lightning reads it with pickle only because it wrote it here.
    state = torch.load(last, map_location="cpu", weights_only=False) if resume else None
    if state is not None and state["global_step"] >= config.trainer.max_steps >= 0:
        task.load_state_dict(state["state_dict"])  # the average; Lightning would stop at once and leave it unused
    else:
        trainer.fit(task, loaders[0], loaders[1] if len(loaders) > 1 else None, ckpt_path=resume, weights_only=False)
    if trainer.is_global_zero:
        save_bundle(model, output / "bundle")
        log.info("model bundle: %s", output / "bundle")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file of configs/train")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the model's size, stop")
    parser.add_argument("--restart", action="store_true", help="begin anew where a run of this name has a checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
    return parser.parse_intermixed_args()


def build_model(config: DictConfig) -> VideoModel:
    """The model of ``config.model``, or the bundle ``config.init_from``: exactly one of them."""
    if ("model" in config) == (config.init_from is not None):
        raise UserError("give either a model section or init_from=BUNDLE, and not both")
    model = build(config.model) if config.init_from is None else load_bundle(config.init_from)
    return model.requires_grad_(True).train().to(memory_format=torch.channels_last)


def build_task(config: DictConfig, model: VideoModel) -> pl.LightningModule:
    """The stage's Lightning module around the model, or around its codec alone where the stage trains only that."""
    optimizer = build(config.optimizer)
    part = {"codec": model.codec} if config.task.target.endswith("CodecTask") else {"model": model}
    try:
        return build(config.task, **part, optimizer=optimizer)
    except MetricUnavailable as error:
        raise UserError(f"{error}; or leave it out with task.pixel_loss.perceptual=null") from error


def build_loaders(config: DictConfig) -> list[DataLoader]:
    """Training batches and, where the config names a ``data.val``, validation batches."""
    loaders = []
    for name in ("train", "val"):
        if name in config.data:
            dataset = build(config.data[name])
            try:
                loader = DataLoader(
                    dataset,
                    batch_size=config.data.batch,
                    num_workers=config.data.workers,
                    pin_memory=torch.cuda.is_available(),
                    drop_last=name == "train",
                )
            except ValueError as error:
                raise UserError(f"data.batch or data.workers cannot be used: {error}") from error
            loaders.append(loader)
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
        DrawAnew(),
    ]
    if config.ema:
        callbacks.append(EMAWeightAveraging(decay=config.ema))
    return build(config.trainer, callbacks=callbacks, logger=build_logger(config, output), default_root_dir=str(output))


def build_logger(config: DictConfig, output: Path) -> Logger:
    """W&B (offline where there is no key) or CSV."""
    if config.logger == "csv":
        return CSVLogger(output, name="log")
    if config.logger == "wandb":
        facts: Any = OmegaConf.to_container(config, resolve=True)
        offline = wandb.api.api_key is None  # neither in the environment nor from `wandb login`
        return WandbLogger(name=config.name, save_dir=output, project="ldm-video", offline=offline, config=facts)
    raise UserError(f"unknown logger '{config.logger}'; use wandb or csv")


def describe(model: VideoModel) -> str:
    """Parameters of each part, in millions."""
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return "\n".join(f"{name}: {count / 1e6:.2f}M parameters" for name, count in parts.items())


if __name__ == "__main__":
    run_cli(main)
