"""Weights in and out: safetensors only, strict, whole or absent."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


def save_weights(module: nn.Module, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a module's state dict as safetensors, floating tensors cast to ``dtype``; tied weights are repeated."""
    written: set[int] = set()

    def cast(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        tensor = (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tied = memory in written  # which safetensors refuses
        written.add(memory)
        return tensor.clone() if tied else tensor

    with atomic_path(path) as temporary:
        try:
            save_file({key: cast(value) for key, value in module.state_dict().items()}, temporary)
        except SafetensorError as error:  # it wraps the operating system's error and drops its number
            raise UserError(f"cannot write {path} ({error}); free some space or choose another folder") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file. A pickle, a missing or a damaged file is a ``UserError``."""
    path = Path(path)
    if path.suffix in _PICKLES:
        raise UserError(
            f"{path} is a pickle, which can run any code when opened; convert it to .safetensors where you trust it"
        )
    if not path.is_file():
        for pickle in sorted(p for p in path.parent.glob(f"{path.stem}.*") if p.suffix in _PICKLES):
            return read_weights(pickle)  # raises
        raise UserError(f"weights {path} do not exist; check the path of the model")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def load_strict(module: nn.Module, state: dict[str, Tensor], where: str | Path) -> None:
    """Load ``state`` into ``module``; a missing, unexpected or misshapen key is a ``UserError`` that names it."""
    expected = module.state_dict()
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "unexpected": sorted(state.keys() - expected.keys()),
        "of another shape": sorted(k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape),
    }
    for problem, keys in problems.items():
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{where}: key '{keys[0]}'{more} {problem}; weights and config.json do not belong together")
    module.load_state_dict(state, strict=True)
