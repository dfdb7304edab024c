"""What every training stage shares: its optimizer, its learning rate, its random numbers, its stop at a NaN."""

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

from ldm_video.core.checks import whole
from ldm_video.core.errors import UserError
from ldm_video.training.batches import Draws, make_draws, save_batch
from ldm_video.training.losses import nothing_of
from ldm_video.training.order import clip_numbers
from ldm_video.training.schedule import FULL, Pace, warmup_cosine

MakeOptimizer = Callable[[Iterable[dict[str, Any]]], Optimizer]


class Stage(pl.LightningModule):
    """A Lightning module that trains whatever of its parameters takes gradients.

    Args:
        optimizer: makes an optimizer of parameter groups.
        warmup: steps of linear warm-up before the cosine, which ends at the trainer's ``max_steps``.
        seed: of the random numbers of each batch.

    Raises ``UserError`` for a warm-up that cannot be, and for settings that the optimizer refuses.
    """

    def __init__(self, optimizer: MakeOptimizer, warmup: int = 100, seed: int = 0) -> None:
        super().__init__()
        try:
            optimizer([{"params": [nn.Parameter(torch.zeros(1))]}])  # what it refuses shows before anything is written
        except (TypeError, ValueError, IndexError) as error:
            raise UserError(f"the optimizer section cannot be used: {error}") from error
        self.make_optimizer = optimizer
        self.warmup = whole("warmup", warmup, 0)
        self.seed = whole("seed", seed, 0)
        self.gathered: dict[str, Tensor] = {}  # after FSDP: the state that lay in pieces on all processes
        self._batch: Mapping[str, Any] = {}  # the last one, to be saved if its gradient is not finite

    def draws(self, batch: Mapping[str, Any], index: int, purpose: str = "train") -> Draws:
        """The random numbers of the ``index``-th batch: a pure function of (seed, index, clips' numbers, purpose)."""
        size = len(batch["hr"])
        if purpose != "train":  # all processes look at the same clips
            first = index * self._whole_batch(size)
            return make_draws(self.seed, index, range(first, first + size), purpose)
        # A run is one epoch, in which no step is ahead of its batch. Only under `overfit_batches` is every batch the
        # first one, which must not meet the same noise for ever.
        index = max(index, self.global_step)
        return make_draws(self.seed, index, clip_numbers(index * size, size), purpose)

    def _whole_batch(self, size: int) -> int:
        """Clips of every validation batch but the last, which has ``size`` and may be short."""
        loader = None if self._trainer is None else self._trainer.val_dataloaders
        return getattr(loader, "batch_size", None) or size

    def restore(self, batch: Mapping[str, Any]) -> Tensor:
        """What the model makes of a batch now, ``b t 3 H W``, about [-1, 1]: for people to look at."""
        raise NotImplementedError

    def paces(self) -> list[tuple[Iterable[nn.Parameter], Pace]]:
        """Parameters that are trained later or slower than the rest."""
        return []

    def at_full_cost(self) -> None:
        """Make every step one of those that take most memory: for an estimate, not for a run."""

    def parameter_groups(self) -> dict[Pace, list[nn.Parameter]]:
        """Every parameter that takes gradients, by its pace."""
        special = {id(parameter): pace for parameters, pace in self.paces() for parameter in parameters}
        groups: dict[Pace, list[nn.Parameter]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                groups.setdefault(special.get(id(parameter), FULL), []).append(parameter)
        return groups

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of the parameters that take gradients, warmed up and then led down a cosine."""
        groups = self.parameter_groups()
        optimizer = self.make_optimizer([{"params": parameters} for parameters in groups.values()])
        return warmup_cosine(optimizer, self.warmup, self.trainer.max_steps, paces=list(groups))

    def total(self, terms: Mapping[str, Tensor], batch: Mapping[str, Any], idle: Sequence[nn.Parameter] = ()) -> Tensor:
        """The end of a training step: the sum of the loss's terms, logged with each of them, see :meth:`finite`.

        ``idle`` are parameters that no term of this step depends on.
        """
        loss = torch.stack(list(terms.values())).sum()
        if idle:
            loss = loss + nothing_of(idle)
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        self.log("train/loss", loss, prog_bar=True)
        return self.finite(loss, batch)

    def finite(self, loss: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """``loss`` itself; if it is not finite, the batch is saved and a ``UserError`` stops the run."""
        self._batch = batch
        if not torch.isfinite(loss):
            self._stop("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop at a gradient that is not finite, and drop the gradients of groups whose time has not come.

        Under 16-mixed it stops only where the loss is scaled down already and no overflow explains it any more.

        Late groups take gradients from the start, because DDP learns at the start which parameters do. Dropped, they
        count neither for the clipping of the others nor for the optimizer's memory.
        """
        for pace, group in zip(self.parameter_groups(), optimizer.param_groups, strict=True):
            if self.global_step < pace.start:
                for parameter in group["params"]:
                    parameter.grad = None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() >= 1:
            return  # gradients overflow now and then: the loss scaler skips such a step and lowers the scale
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        if not torch.isfinite(norm):
            self._stop("gradient", norm)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does it; it refuses norms under FSDP, where no process has a whole gradient but FSDP itself."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy) and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            sharded = strategy.model
            assert isinstance(sharded, FullyShardedDataParallel)
            sharded.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_end(self) -> None:
        """Under FSDP every process takes part in gathering the weights, of which process 0 keeps the whole."""
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
            "checkpoint is untouched; look at the batch, or begin anew (--restart) with a lower optimizer.lr"
        )
