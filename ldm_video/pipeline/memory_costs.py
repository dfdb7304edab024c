"""Measure a model's memory on a few tiny frames, and the memory that is free."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldm_video.core.errors import UserError
from ldm_video.core.evidence import Evidence, build_evidence
from ldm_video.core.memory import peak_resident
from ldm_video.pipeline.restore import Restorer

LEAVE = 0.9
"""Fraction of the free memory that ``auto`` takes."""

_GPU_CONTEXT = 600 * 10**6
_PROBE_FRAMES = 2  # for work that costs the same per frame
_PROBE_SIDE = 16  # minimum, in low-res pixels: below it no motion is searched, and a codec may behave differently


@dataclass(frozen=True)
class Costs:
    """A model's memory, in bytes.

    Attributes:
        base: resident before the first clip.
        sample: live tensors per output pixel of one frame of a window, while sampling.
        decode: the same while decoding as many frames as were measured.
        finish: live tensors per output pixel, for all frames of a segment together, while finishing: what a restorer
            takes for the few frames it draws does not grow with the others. 0: the codec does not finish.
        encode: as ``sample``, while encoding the guess or the canvas, which is done in whole frames; 0: it is not done.
        at_once: pixels that the codec processes at a time; None: all that it is given.
    """

    base: int
    sample: float
    decode: float
    finish: float = 0.0
    encode: float = 0.0
    at_once: int | None = None


@torch.no_grad()
def measure_costs(restorer: Restorer, window: int, segment: int, scale: tuple[float, float]) -> Costs:
    """Sample, decode, finish and encode a few tiny frames, and measure the peak of live tensors.

    Args:
        restorer: a model and its settings.
        window: frames that are decoded at once.
        segment: frames that are finished at once.
        scale: enlargement (vertical, horizontal).
    """
    model, settings = restorer.model, restorer.settings
    side = round_up(max(2 * model.multiple, _PROBE_SIDE * max(scale)), model.multiple)
    few, decoded, finished = (
        _tiny_evidence(count, side, scale, restorer.device) for count in (_PROBE_FRAMES, window, segment)
    )
    codec_dtype = next(iter(model.codec.parameters())).dtype
    small = restorer.with_settings(steps=min(2, settings.steps), strength=1.0, tile=None)
    grid = side // model.codec.factor
    latents = torch.randn(1, window, model.codec.latent_channels, grid, grid, device=restorer.device, dtype=codec_dtype)
    with LiveBytes() as sampling:
        small.sample(few, list(range(_PROBE_FRAMES)), None)
    with LiveBytes() as decoding:
        model.codec.decode(latents, decoded)
    with LiveBytes() as finishing:
        model.codec.finish(finished.guess, finished)
    with LiveBytes() as encoding:
        encodes = model.encode_canvas(few) is not None
        if settings.strength < 1:
            encodes = model.codec.encode(few.guess.to(codec_dtype), few) is not None
    return Costs(
        base=held_before_work(restorer.device),
        sample=sampling.peak / (_PROBE_FRAMES * side**2),
        decode=decoding.peak / (window * side**2),
        finish=finishing.peak / side**2,
        encode=encoding.peak / (_PROBE_FRAMES * side**2) if encodes else 0.0,
        at_once=model.codec.pixels_at_once,
    )


class LiveBytes(TorchDispatchMode):
    """``with LiveBytes() as live: ...; live.peak``: peak bytes of live tensors that were created inside."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):  # created before, counted as 0: the result may be a view of it
            self._count(tensor.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            self._count(storage, storage.nbytes())
        return result

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = size
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._known.pop(key)


@cache
def held_before_work(device: torch.device) -> int:
    """Return the process's peak bytes when first called (cached): each clip reuses what earlier ones leave behind."""
    return peak_resident() if device.type == "cpu" else torch.cuda.memory_reserved(device) + _GPU_CONTEXT


def free_memory(device: torch.device, environment: Mapping[str, str]) -> int:
    """Return the bytes this process may hold: what it holds plus nine tenths of what is free.

    On a CPU, torchrun's processes share the free part. Raises ``UserError`` if the system does not tell what is free.
    """
    if device.type == "cuda":
        return int(LEAVE * torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device) + _GPU_CONTEXT
    try:
        available = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
        now = _kilobytes(Path("/proc/self/status"), "VmRSS")
    except (OSError, ValueError):
        raise UserError("--memory auto cannot tell what is free on this system; give an amount") from None
    others = environment.get("LOCAL_WORLD_SIZE", "")
    processes = int(others) if others.isdecimal() else 1
    return int(LEAVE * min([available, *_cgroup_room()]) / max(1, processes)) + now


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _tiny_evidence(frames: int, side: int, scale: tuple[float, float], device: torch.device) -> Evidence:
    hole = torch.zeros(1, frames, 1, side, side, device=device)  # b t 1 H W
    hole[..., : side // 2, : side // 2] = 1
    low = [math.ceil(side / enlarged) for enlarged in scale]
    return build_evidence(torch.zeros(1, frames, 3, *low, device=device), hole)


def round_up(length: float, multiple: int) -> int:
    """The least multiple of ``multiple`` that is at least ``length``."""
    return math.ceil(length / multiple) * multiple


def _kilobytes(path: Path, name: str) -> int:
    """Read an entry of one of Linux's ``/proc`` tables, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"no {name}")
    return int(found[1]) * 1024


def _reclaimable(group: Path) -> int:
    """Return the bytes of page cache that can be reclaimed: they count as used."""
    found = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _cgroup_room() -> Iterator[int]:
    """Yield the bytes left below the limits of this process's cgroups (version 2), as set by a batch system."""
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    except OSError:
        return
    root = Path("/sys/fs/cgroup")
    for folder in (root / own, *(root / own).parents):
        if not folder.is_relative_to(root):
            return
        try:
            used = int((folder / "memory.current").read_text()) - _reclaimable(folder)
            yield int((folder / "memory.max").read_text()) - used
        except (OSError, ValueError):  # no limit, or "max"
            continue
