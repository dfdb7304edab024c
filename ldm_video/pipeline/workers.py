"""Several processes, one clip or archive: who does what, which GPU is whose, and who may end.

At work no process talks to another. They meet in the journal's folder: locks (:mod:`ldm_video.core.locks`) say who is
there. Only the end is torchrun's business, which ends all processes when one ends with an error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from ldm_video.core.errors import UserError

_WAIT = 0.5  # seconds between looks at the other processes
_ANSWER = 30.0  # seconds that torchrun's store has to answer


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


def finish(environment: Mapping[str, str], failed: bool) -> None:
    """Under torchrun: tell its store that this process is done and, if it ``failed``, wait until all others are.

    Locks cannot tell a process that has ended from one that has yet to begin. Where the store has gone, so has
    torchrun, and there is nothing to wait for.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in every build of torch

    done = f"infer/{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}/done"
    try:
        place, answer = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"])), timedelta(seconds=_ANSWER)
        store = TCPStore(*place, timeout=answer, wait_for_workers=False)
        count = store.add(done, 1)
        while failed and count < int(environment["WORLD_SIZE"]):
            time.sleep(_WAIT)
            count = store.add(done, 0)
    except RuntimeError:  # torch's DistError
        return
