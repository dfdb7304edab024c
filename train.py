"""Train: ``python train.py --config configs/train/tiny/codec.yaml data.root=FOLDER [key=value ...]``."""

from __future__ import annotations

import argparse
import atexit
import logging
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies import FSDPStrategy
from torch.utils.data import DataLoader

from data.cache import headers_only
from data.scales import SeveralScales
from eval.metrics.backbones import MetricUnavailable
from ldm_video.config import build, load_config, missing_arguments, save_config
from ldm_video.core.checks import sides
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.models.bundle import save_bundle
from ldm_video.models.lora import LoRA, adapter_parameters, add_adapters, save_adapter
from ldm_video.models.open_model import open_model
from ldm_video.models.video_model import VideoModel
from ldm_video.training.alone import alone
from ldm_video.training.checkpoints import begin_anew, changes, full_disk_explained, last_good, read_checkpoint
from ldm_video.training.estimate import Plan, estimate, parameter_table
from ldm_video.training.loggers import keep_wandb_id, log_bundle
from ldm_video.training.order import ClipOrder
from ldm_video.training.preemption import end_workers, ignore_signals
from ldm_video.training.same_run import ORIGIN, RUN, check_fits, check_same_origin, check_same_run, origin_of
from ldm_video.training.settings import check_settings
from ldm_video.training.sizes import check_clips, check_size
from ldm_video.training.stage import Stage
from ldm_video.training.trainer import build_trainer
from ldm_video.training.watch import LastValidation, Pictures

log = logging.getLogger("train")

SECTIONS = (
    "name", "output", "seed", "init_from", "model", "lora", "task", "data", "optimizer", "ema",
    "gradient_checkpointing", "compile", "attention", "trainer", "checkpoint_every", "logger", "watch", "publish",
    "data.root", "data.cache", "data.frames", "data.size", "data.batch", "data.workers", "data.degrade",
    "data.average", "data.seed", "data.train", "data.val",
)  # fmt: skip


def main() -> None:
    """Read the command line, build all components, train, and save the model bundle."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(arguments.config, arguments.overrides, known=SECTIONS)
    check_settings(config)
    pl.seed_everything(config.seed, verbose=False)
    model = build_model(config)
    task = build_task(config, model)
    check_size(task, sides("data.size", config.data.size), "data")  # before clips are decoded, which takes minutes
    output = Path(config.output)
    found = changes(output / "checkpoints")
    origin = origin_of(config)
    last, done = (None, 0) if arguments.restart else find_state(config, output, task, origin)
    # All checks come before anything is written: a wrong folder must leave nothing behind.
    with headers_only() if arguments.dry_run else nullcontext():
        loaders = build_loaders(config, done)
        watchers = build_watchers(config, output)
        trainer = build_trainer(config, output, watchers, anew=arguments.restart, origin=origin)
    if isinstance(trainer.strategy, FSDPStrategy):
        check_fsdp(config)
    for name, loader in loaders.items():
        check_clips(task, loader.dataset, f"data.{name.partition('_')[0]}")
    for pictures in watchers:
        check_clips(task, pictures.clips, "watch", judged=False)
    share_scales(loaders.values(), config.data.batch * trainer.world_size)
    if arguments.dry_run:
        print(OmegaConf.to_yaml(config, resolve=True))
        print(describe(config, model, task))
        return
    with alone(output, found) if trainer.is_global_zero else nullcontext():
        if trainer.is_global_zero:
            if arguments.restart:
                begin_anew(output / "checkpoints")
            save_config(config, output / "config.yaml")
            keep_wandb_id(trainer.loggers, output)
        fit(trainer, task, loaders, last, done)
        if trainer.is_global_zero:
            save_results(config, model, task, trainer)


def fit(trainer: pl.Trainer, task: Stage, loaders: dict[str, Any], last: Path | None, done: int) -> None:
    """Train from the checkpoint ``last`` at step ``done``; afterwards ``task`` holds the averaged weights."""
    if last is not None:
        log.info("resuming from %s at step %d (use --restart to start over)", last, done)
    with full_disk_explained(trainer.default_root_dir), warnings.catch_warnings():
        # Resuming within an epoch is supported here: ClipOrder continues at the exact clip.
        warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch ended")
        trainer.fit(task, **loaders, ckpt_path=last, weights_only=False)
    if last is not None and trainer.global_step == done:
        # There were no steps left, so Lightning did not copy the average into the model.
        task.load_state_dict(read_checkpoint(last)["state_dict"])
        validation = next(part for part in trainer.callbacks if isinstance(part, LastValidation))  # type: ignore[attr-defined]
        if validation.is_missing(trainer):
            trainer.validate(task, loaders["val_dataloaders"], verbose=False)


def save_results(config: DictConfig, model: VideoModel, task: Stage, trainer: pl.Trainer) -> None:
    """Save the bundle or adapters in the output folder and, if ``publish`` is set, there in half precision."""
    output = Path(config.output)
    if task.gathered:  # under FSDP, this model holds only a shard of the weights
        model = build_model(config)
        build_task(config, model).load_state_dict(task.gathered)
    kind, result = "model bundle", output / "bundle"
    if adapter_parameters(model.denoiser):
        kind, result = f"LoRA of {config.init_from}, for infer.py --lora", output / "lora"
    save_result(config, model, result)
    log.info("%s: %s", kind, result)
    log_bundle(trainer.loggers, result, config.name)
    if config.publish is not None:
        save_result(config, model, config.publish, torch.float16)
        log.info("published in half precision: %s", config.publish)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file of configs/train")
    parser.add_argument("--dry-run", action="store_true", help="print config, size, memory and hours, and stop")
    parser.add_argument("--restart", action="store_true", help="start over if a run of this name has a checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
    return parser.parse_intermixed_args()


def find_state(config: DictConfig, output: Path, task: Stage, origin: str | None) -> tuple[Path | None, int]:
    """Return the checkpoint to resume from (or None) and its step.

    Raises ``UserError`` if it is of another run, or of one that began from another ``origin``.
    """
    last, state = last_good(output / "checkpoints")
    if last is None:
        return None, 0
    check_same_run(output / "config.yaml", config, state.get(RUN))
    check_same_origin(output / "config.yaml", config, origin, state.get(ORIGIN))
    check_fits(state["state_dict"], task, last)
    return last, state["global_step"]


def build_model(config: DictConfig) -> VideoModel:
    """Build ``config.model`` or load ``config.init_from`` (bundle, checkpoint, hub), ready for training.

    Raises ``UserError`` unless exactly one of them is given.
    """
    if (config.get("model") is not None) == (config.init_from is not None):
        raise UserError("give either a model section or init_from=MODEL, and not both")
    lora = build_lora(config)
    temporal = None if lora is None else lora.layers
    model = build(config.model) if config.init_from is None else open_model(config.init_from, temporal=temporal)
    if lora is not None:
        add_adapters(model.denoiser, lora)
    if config.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()
    model.denoiser.set_attention(config.get("attention", "auto"))
    if config.get("compile"):
        model.denoiser.compile()  # in place, so that weight names and the bundle do not change
    return model.requires_grad_(True).train().to(memory_format=torch.channels_last)


def build_lora(config: DictConfig) -> LoRA | None:
    """Build the adapters of ``config.lora``; None without a rank. Raises ``UserError`` if they do not fit the run."""
    lora: LoRA | None = None if config.get("lora") is None else build(config.lora)
    if lora is None or lora.rank is None:
        return None
    if config.init_from is None or "codec" in missing_arguments(config.task):
        raise UserError("lora adapts the denoiser of a trained model: give init_from=MODEL and a stage that trains it")
    return lora


def build_task(config: DictConfig, model: VideoModel) -> Stage:
    """Build the stage's Lightning module around the model, or around its codec if the stage takes only a codec."""
    optimizer = build(config.optimizer)
    part = {"codec": model.codec} if "codec" in missing_arguments(config.task) else {"model": model}
    try:
        return build(config.task, **part, optimizer=optimizer)
    except MetricUnavailable as error:
        raise UserError(f"{error}; or leave it out with task.pixel_loss.perceptual=null") from error


def build_loaders(config: DictConfig, done: int) -> dict[str, Any]:
    """Build the loaders of training batches from step ``done`` on and, if ``data.val`` is set, validation batches."""
    per_step = config.data.batch * config.trainer.get("accumulate_grad_batches", 1)
    order = ClipOrder(config.trainer.max_steps * per_step, done * per_step)
    loaders = {}
    atexit.register(end_workers)
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
                    worker_init_fn=ignore_signals,
                )
            except (TypeError, ValueError) as error:
                raise UserError(f"data.batch or data.workers cannot be used: {error}") from error
            loaders[f"{name}_dataloaders"] = loader
    return loaders


def check_fsdp(config: DictConfig) -> None:
    """Raise ``UserError`` for options that need all weights in one process, because FSDP shards them."""
    for key, what in (("ema", "moving average"), ("watch", "picture of fixed clips")):
        if config.get(key) is not None:
            raise UserError(f"there is no {what} under FSDP; set {key}=null, or trainer.strategy=ddp")
    key = "task.pixel_loss.adversary"
    if OmegaConf.select(config, key) is not None:  # FSDP cannot hold its weights constant for the model's term
        raise UserError(f"there is no adversary under FSDP; set {key}=null, or trainer.strategy=ddp")


def share_scales(loaders: Iterable[DataLoader[Any]], clips: int) -> None:
    """Give all ``clips`` of a step, over all processes, the same scale, so that their low-res frames match in size."""
    for loader in loaders:
        if isinstance(loader.dataset, SeveralScales):
            loader.dataset.together = clips


def save_result(config: DictConfig, model: VideoModel, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Save the model bundle with the trained scale as its default; of a model with adapters, only these."""
    if adapter_parameters(model.denoiser):
        save_adapter(model.denoiser, folder, config.init_from, dtype)
    else:
        model.sampling = replace(model.sampling, scale=trained_scale(config.data.train, model.sampling.scale))
        save_bundle(model, folder, dtype)


def trained_scale(data: DictConfig, own: float) -> float:
    """Return the model's ``own`` scale if it was trained on clips of that scale, else their most frequent scale.

    The value is returned as in the config, integer or not.
    """
    scales = data.get("scales", [data.get("scale", own)])
    weights = data.get("weights", [1.0])
    return own if own in scales else max(zip(weights, scales, strict=True))[1]


def build_watchers(config: DictConfig, output: Path) -> list[Pictures]:
    """Build the callback for pictures and metrics of fixed clips, if the config has a ``watch`` section."""
    if config.get("watch") is None:
        return []
    try:
        return [build(config.watch, folder=output / "media")]
    except MetricUnavailable as error:
        raise UserError(f"{error}; or leave it out with watch.metrics.NAME=null") from error


def describe(config: DictConfig, model: VideoModel, task: Stage) -> str:
    """Describe the parameters of each part, and memory and hours of one process, measured on synthetic clips."""
    data, trainer = config.data, config.trainer
    plan = Plan(
        batch=data.batch,
        frames=data.frames,
        size=sides("data.size", data.size),
        scale=trained_scale(data.train, model.sampling.scale),
        steps=trainer.max_steps,
        accumulate=trainer.get("accumulate_grad_batches", 1),
        precision=str(trainer.get("precision", "32-true")),
        average=bool(config.ema),
    )
    on_gpu = torch.cuda.is_available() and trainer.get("accelerator", "auto") != "cpu"
    return f"{parameter_table(model, task)}\n{estimate(task, plan, torch.device('cuda' if on_gpu else 'cpu'))}"


if __name__ == "__main__":
    run_cli(main)
