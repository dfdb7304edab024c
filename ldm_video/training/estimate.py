"""Estimate a run's parameters, memory and hours before it starts, by real steps on synthetic clips."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm_video.training.stage import Stage

TOO_LARGE_FOR_A_CPU = 2e8  # parameters; a CPU step of a larger model would take minutes and tell nothing
_HALF = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """The size of a run.

    Attributes:
        batch, frames, size, scale: number of clips per batch in one process; their frames, (height, width) and scale.
        steps: total number of optimizer steps.
        accumulate: batches per optimizer step.
        precision: precision as Lightning names it.
        average: whether a moving average of the weights is kept.
    """

    batch: int
    frames: int
    size: tuple[int, int]
    scale: float
    steps: int
    accumulate: int = 1
    precision: str = "32-true"
    average: bool = False


def parameter_table(model: nn.Module, stage: Stage) -> str:
    """Return a line per part of ``model`` with its parameters, in millions: all, trained by ``stage``, frozen."""
    trained = {id(p) for p in stage.parameters() if p.requires_grad}
    lines = []
    for name, part in model.named_children():
        count = sum(p.numel() for p in part.parameters())
        own = sum(p.numel() for p in part.parameters() if id(p) in trained)
        lines.append(
            f"{name}: {count / 1e6:.2f}M parameters, {own / 1e6:.2f}M trained, {(count - own) / 1e6:.2f}M frozen"
        )
    return "\n".join(lines)


def estimate(stage: Stage, plan: Plan, device: torch.device) -> str:
    """Describe memory and time of one process, from two real steps of ``stage`` on ``device`` at full cost.

    This changes the stage's weights and settings.
    """
    parameters = sum(p.numel() for p in stage.parameters())
    if device.type == "cpu" and parameters > TOO_LARGE_FOR_A_CPU:
        return (
            f"memory and hours: not measured, {parameters / 1e6:.0f}M parameters on a CPU; "
            "run this where the training will run"
        )
    half = next((dtype for name, dtype in _HALF.items() if plan.precision.startswith(name)), None)
    stage.at_full_cost()
    stage.to(device)
    if half is not None and plan.precision.endswith("true"):
        stage.to(half)
    autocast = torch.autocast(device.type, half) if half is not None else nullcontext()
    optimizer = stage.make_optimizer([{"params": parameters} for parameters in stage.parameter_groups().values()])
    batch = synthetic_batch(plan, device, next(stage.parameters()).dtype)
    seconds, activations = 0.0, 0
    for index in range(2):  # the first one includes one-time costs
        begin = time.perf_counter()
        with warnings.catch_warnings(), autocast, _saved_bytes(stage) as saved:
            warnings.filterwarnings("ignore", message=".*self.log.*")  # there is no trainer to log to
            loss = stage.training_step(batch, index)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds, activations = time.perf_counter() - begin, saved[0]
    trained = [p for p in stage.parameters() if p.requires_grad]
    weights = sum(_bytes(x) for x in (*stage.parameters(), *stage.buffers()))
    state = sum(_bytes(x) for s in optimizer.state.values() for x in s.values() if isinstance(x, Tensor))
    parts = {
        "weights": weights,
        "gradients": sum(_bytes(p) for p in trained),
        "optimizer": state,
        "average": weights if plan.average else 0,
        "activations": activations,
    }
    listed = ", ".join(f"{name} {_readable(size)}" for name, size in parts.items())
    step = seconds * plan.accumulate
    return (
        f"memory: about {_readable(sum(parts.values()))} ({listed}); activations are what one step of batch "
        f"{plan.batch} kept for its backward pass; kernels' scratch space and fragmentation come on top\n"
        f"time: {seconds:.2f} s a batch here ({device.type}), {step:.2f} s a step, {step * plan.steps / 3600:.1f} h "
        f"for {plan.steps} steps, without reading data and validation"
    )


def synthetic_batch(plan: Plan, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return noise in the shape of a batch, with a hole near the middle of every frame."""
    height, width = plan.size
    generator = torch.Generator().manual_seed(0)

    def pixels(*size: int) -> Tensor:
        return torch.rand(plan.batch, plan.frames, 3, *size, generator=generator).to(device, dtype) * 2 - 1

    hole = torch.zeros(plan.batch, plan.frames, 1, height, width, device=device, dtype=dtype)
    hole[..., height // 3 : height // 2, width // 3 : width // 2] = 1
    return {
        "hr": pixels(height, width),
        "lr": pixels(round(height / plan.scale), round(width / plan.scale)),
        "hole": hole,
        "caption": ["a street"] * plan.batch,
    }


@contextmanager
def _saved_bytes(stage: Stage) -> Iterator[list[int]]:
    """Count the bytes that autograd saves for the backward pass: each storage once, without weights."""
    known = {x.untyped_storage().data_ptr() for x in (*stage.parameters(), *stage.buffers())}
    total = [0]
    alive: list[Tensor] = []  # keep storages alive, so that their addresses are not reused

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            alive.append(x.detach())
            total[0] += storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield total


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
