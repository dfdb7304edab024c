"""Read and write a model's files: weights as safetensors only, loaded strictly and saved atomically; JSON objects."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path

INDEX = "model_index.json"
"""The file that names the parts of a model folder: a diffusers pipeline or one of our bundles."""

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


def save_weights(module: nn.Module, path: str | Path, dtype: torch.dtype | None = None, prefix: str = "") -> None:
    """Write a module's state dict as safetensors, with floating-point tensors cast to ``dtype``.

    Tied weights are duplicated. ``prefix`` is prepended to each name. The header says ``format: pt``; older
    transformers refuse files without it.

    Raises ``UserError`` if the file cannot be written.
    """
    written: set[int] = set()

    def cast(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        tensor = (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tied = memory in written  # safetensors refuses shared memory
        written.add(memory)
        return tensor.clone() if tied else tensor

    with atomic_path(path) as temporary:
        try:
            state = {f"{prefix}{key}": cast(value) for key, value in module.state_dict().items()}
            save_file(state, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # it wraps the OS error and drops its errno
            raise UserError(f"cannot write {path} ({error}); free some space or choose another folder") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ``UserError`` if it is a pickle, missing or damaged."""
    path = Path(path)
    refuse_pickle(path)
    if not path.is_file():
        for sibling in sorted(path.parent.glob(f"{path.stem}.*")):
            refuse_pickle(sibling)
        raise UserError(f"weights {path} do not exist; check the path of the model")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error


def refuse_pickle(path: Path) -> None:
    """Raise ``UserError`` if the suffix of ``path`` is a pickle's; the message has a command that converts the file."""
    if path.suffix not in _PICKLES:
        return
    # Original Stable Diffusion checkpoints pickle Lightning's ModelCheckpoint; an empty class stands in for it.
    script = (
        "import sys, torch; from safetensors.torch import save_file; "
        "c = type('ModelCheckpoint', (), {'__module__': 'pytorch_lightning.callbacks.model_checkpoint'}); "
        "torch.serialization.add_safe_globals([c]); "
        "s = torch.load(sys.argv[1], map_location='cpu', weights_only=True); s = s.get('state_dict', s); "
        "save_file({k: v.clone().contiguous() for k, v in s.items() if torch.is_tensor(v)}, sys.argv[2])"
    )
    command = shlex.join(["python", "-c", script, str(path), str(path.with_suffix(".safetensors"))])
    raise UserError(
        f"{path} is a pickle, which can run any code when opened; make it a .safetensors file with: {command}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises ``UserError`` if it is missing, damaged or holds anything else."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; the model is not whole, copy or download it again")
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; copy or download it again")
    return value


def load_strict(module: nn.Module, state: dict[str, Tensor], where: str | Path) -> None:
    """Load ``state`` into ``module``. Raises ``UserError`` naming a missing, unexpected or misshapen key."""
    expected = module.state_dict()
    misshapen = (key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape)
    refuse_keys(where, expected.keys() - state.keys(), state.keys() - expected.keys(), misshapen)
    module.load_state_dict(state, strict=True)


def refuse_keys(where: str | Path, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]) -> None:
    """Raise ``UserError`` naming the first key that does not fit; do nothing if all fit."""
    for problem, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        if keys := sorted(found):
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{where}: key '{keys[0]}'{more} {problem}; weights and config.json do not belong together")
