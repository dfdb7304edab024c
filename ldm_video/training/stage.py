"""Base class of the training stages: optimizer, learning rate, random numbers, and the stop at a NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm_video.core.checks import whole
from ldm_video.core.errors import UserError
from ldm_video.training.batches import Draws, make_draws, save_batch
from ldm_video.training.losses import nothing_of
from ldm_video.training.order import clip_numbers
from ldm_video.training.schedule import FULL, Pace, set_rates, warmup_cosine

MakeOptimizer = Callable[[Iterable[dict[str, Any]]], Optimizer]


class Stage(pl.LightningModule):
    """A Lightning module that trains those of its parameters that require gradients.

    Args:
        optimizer: builds an optimizer from parameter groups.
        warmup: steps of linear warm-up before the cosine decay, which ends at the trainer's ``max_steps``.
        seed: seed of the random numbers of each batch, 0 or more.

    Raises ``UserError`` for an invalid warm-up or seed, and for settings that the optimizer rejects.
    """

    def __init__(self, optimizer: MakeOptimizer, warmup: int = 100, seed: int = 0) -> None:
        super().__init__()
        try:
            optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])  # fail before anything is written
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(f"the optimizer section cannot be used: {error}") from error
        self.make_optimizer = optimizer
        self.warmup = whole("warmup", warmup, 0)
        self.seed = whole("seed", seed, 0)
        self.gathered: dict[str, Tensor] = {}  # after FSDP: the full state, gathered from all processes
        self._batch: Mapping[str, Any] = {}  # the last one, to be saved if its gradient is not finite

    def draws(self, batch: Mapping[str, Any], index: int, purpose: str = "train") -> Draws:
        """Return the generators of the ``index``-th batch: a pure function of (seed, index, clip numbers, purpose)."""
        size = len(batch["hr"])
        if purpose != "train":  # all processes get the same clips
            first = index * self._whole_batch(size)
            return make_draws(self.seed, index, range(first, first + size), purpose)
        # A run is one epoch, in which the step never exceeds the batch index. Only under `overfit_batches` is the index
        # always 0, and the noise must still change.
        index = max(index, self.global_step)
        return make_draws(self.seed, index, clip_numbers(index * size, size), purpose)

    def _whole_batch(self, size: int) -> int:
        """Return the size of a full validation batch; ``size`` is that of the current one, which may be the last."""
        loader = None if self._trainer is None else self._trainer.val_dataloaders
        return getattr(loader, "batch_size", None) or size

    def restore(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the model's current output for a batch, ``b t 3 H W``, about [-1, 1], for visualisation."""
        raise NotImplementedError

    def paces(self) -> list[tuple[str, Iterable[nn.Parameter], Pace]]:
        """Return named parameters whose pace differs from that of the rest: later, or at another learning rate."""
        return []

    def at_full_cost(self) -> None:
        """Make every step one of the most expensive kind: for an estimate, not for a run."""

    def parameter_groups(self) -> dict[Pace, list[nn.Parameter]]:
        """Return all parameters that require gradients, grouped by pace."""
        special = {id(parameter): pace for _, parameters, pace in self.paces() for parameter in parameters}
        groups: dict[Pace, list[nn.Parameter]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                groups.setdefault(special.get(id(parameter), FULL), []).append(parameter)
        return groups

    def group_names(self) -> list[str]:
        """What each of :meth:`parameter_groups` trains: the names of :meth:`paces`, and ``rest``."""
        part = {id(parameter): name for name, parameters, _ in self.paces() for parameter in parameters}
        groups = self.parameter_groups().values()
        return ["_".join(sorted({part.get(id(parameter), "rest") for parameter in group})) for group in groups]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer of the parameters that require gradients, with warm-up and cosine decay.

        Several groups are named, and their learning rates are logged under those names.
        """
        groups = self.parameter_groups()
        optimizer = self.make_optimizer([{"params": parameters} for parameters in groups.values()])
        if len(groups) > 1:
            name_groups(optimizer, self.group_names())
        return warmup_cosine(optimizer, self.warmup, self.trainer.max_steps, paces=list(groups))

    def on_train_start(self) -> None:
        """``trainer.max_steps`` may have changed since the checkpoint, which has the optimizer's rates in it."""
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        set_rates(scheduler)

    def total(self, terms: Mapping[str, Tensor], batch: Mapping[str, Any], idle: Sequence[nn.Parameter] = ()) -> Tensor:
        """Finish a training step: sum and log the loss terms, and return the sum, checked by :meth:`finite`.

        ``idle`` are the parameters that no term of this step depends on.
        """
        loss = torch.stack(list(terms.values())).sum()
        if idle:
            loss = loss + nothing_of(idle)
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        self.log("train/loss", loss, prog_bar=True)
        return self.finite(loss, batch)

    def finite(self, loss: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return ``loss``; if it is not finite, save the batch and raise a ``UserError``, which stops the run."""
        self._batch = batch
        if not torch.isfinite(loss):
            self._stop("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop at a non-finite gradient, and drop the gradients of groups that are not trained yet.

        Under 16-mixed, stop only if the loss scale is below 1, where overflow no longer explains it.

        Late groups require gradients from the start, because DDP registers the trained parameters at the start. Once
        dropped, their gradients affect neither the clipping of the others nor the optimizer's state.
        """
        for pace, group in zip(self.parameter_groups(), optimizer.param_groups, strict=True):
            if self.global_step < pace.start:
                for parameter in group["params"]:
                    parameter.grad = None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() >= 1:
            return  # occasional overflow is normal: the loss scaler skips such a step and lowers the scale
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        if not torch.isfinite(norm):
            self._stop("gradient", norm)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, but support norms under FSDP, where only FSDP itself can compute the full norm."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy) and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            sharded = strategy.model
            assert isinstance(sharded, FullyShardedDataParallel)
            sharded.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_end(self) -> None:
        """Under FSDP, gather the full weights on process 0; all processes must take part."""
        if isinstance(self.trainer.strategy, FSDPStrategy):
            self.gathered = self.trainer.strategy.lightning_module_state_dict()

    def _stop(self, what: str, value: Tensor) -> None:
        if self._trainer is None:  # an estimate
            raise UserError(f"the {what} is {value.item()}; look at trainer.precision and optimizer.lr")
        name = f"bad_batch_step{self.global_step}_rank{self.global_rank}.safetensors"
        path = Path(self.trainer.default_root_dir) / name
        save_batch(self._batch, path)
        raise UserError(
            f"the {what} is {value.item()} at step {self.global_step}; its batch is saved in {path} and the last "
            "checkpoint is untouched; look at the batch, or start over (--restart) with a lower optimizer.lr"
        )


def name_groups(optimizer: Optimizer, names: Sequence[str]) -> None:
    """Give the groups their names, and again whenever a checkpoint is loaded: an older one has none."""

    def name(optimizer: Optimizer) -> None:
        for group, own in zip(optimizer.param_groups, names, strict=True):
            group["name"] = own

    name(optimizer)
    optimizer.register_load_state_dict_post_hook(name)
