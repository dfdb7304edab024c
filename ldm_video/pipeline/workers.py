"""Several processes, one clip: who does what, who is alive, and which GPU is whose.

No process talks to another. They meet in the journal's folder: locks (:mod:`ldm_video.core.locks`) say who is at work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ldm_video.core.errors import UserError


@dataclass(frozen=True)
class Share:
    """Chains ``index``, ``index + count``, ... of a clip are this process's."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def owns(self, chain: int) -> bool:
        return chain % self.count == self.index


def find_share(text: str | None, environment: Mapping[str, str]) -> Share:
    """From ``--share 2/8`` (counted from 1), else from the variables that torchrun sets, else everything."""
    if text is not None:
        parts = re.fullmatch(r"(\d+)/(\d+)", text)
        if parts is None or not 1 <= int(parts[1]) <= int(parts[2]):
            raise UserError(f"--share {text} is not of the form K/N with K from 1 to N; for example 2/8")
        return Share(int(parts[1]) - 1, int(parts[2]))
    try:
        return Share(int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)))
    except ValueError:
        raise UserError("RANK and WORLD_SIZE are set but are not numbers; unset them or use torchrun") from None


def own_device(device: str, environment: Mapping[str, str], gpus: int) -> str:
    """GPU number LOCAL_RANK, modulo ``gpus``, where ``device`` is ``auto`` or ``cuda`` and there are GPUs."""
    local = environment.get("LOCAL_RANK", "")
    if device not in ("auto", "cuda") or not local.isdecimal() or not gpus:
        return device
    return f"cuda:{int(local) % gpus}"
