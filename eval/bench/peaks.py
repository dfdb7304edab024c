"""Peak memory of a piece of work, measured in a process that does nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

from ldm_video.core.errors import UserError
from ldm_video.core.memory import peak_resident

Work = Callable[[], object]


def peak_of(prepare: Callable[[], Work], device: str, name: str, remedy: str) -> int:
    """Return the peak memory of ``prepare()()`` in bytes: of tensors on a GPU; of the whole process on a CPU.

    Args:
        prepare: makes the work; must be picklable. On a GPU, its own peak is not counted, but what it keeps is.
        name, remedy: for the message of the ``UserError`` that is raised when the process fails.
    """
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_measure, args=(prepare, device, torch.get_num_threads(), result))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError(f"'{name}' ended with code {process.exitcode}; {remedy}")
    return int(result.get())


def _measure(prepare: Callable[[], Work], device: str, threads: int, result: Any) -> None:
    torch.set_num_threads(threads)
    work = prepare()
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    work()
    result.put(torch.cuda.max_memory_allocated(device) if on_gpu else peak_resident())
