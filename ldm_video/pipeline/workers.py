"""Several processes on one clip or archive: who does what, on which GPU, and who may end.

While working, processes do not communicate. They meet in the journal's folder, where locks
(:mod:`ldm_video.core.locks`) show who is present. Only at the end is torchrun involved: it ends all processes when one
fails.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from ldm_video.core.errors import UserError

_POLL_INTERVAL = 0.5  # seconds between polls of the other processes
_STORE_TIMEOUT = 30.0  # timeout of torchrun's store, in seconds


@dataclass(frozen=True)
class Share:
    """This process's chains of a clip: ``index``, ``index + count``, ..."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def owns(self, chain: int) -> bool:
        return chain % self.count == self.index


def find_share(text: str | None, environment: Mapping[str, str]) -> Share:
    """Return the share of ``--share 2/8`` (from 1), else of torchrun's environment variables, else everything.

    Raises ``UserError`` if either is malformed.
    """
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
    """Return GPU number LOCAL_RANK modulo ``gpus`` if ``device`` is ``auto`` or ``cuda`` and there are GPUs.

    Otherwise return ``device``.
    """
    local = environment.get("LOCAL_RANK", "")
    if device not in ("auto", "cuda") or not local.isdecimal() or not gpus:
        return device
    return f"cuda:{int(local) % gpus}"


def finish(environment: Mapping[str, str], failed: bool) -> None:
    """Under torchrun: report to its store that this process is done and, if it ``failed``, wait for all others.

    Locks cannot tell a process that has ended from one that has yet to begin. If the store is gone, so is torchrun, and
    there is nothing to wait for.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in every build of torch

    done = f"infer/{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}/done"
    try:
        place, answer = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"])), timedelta(seconds=_STORE_TIMEOUT)
        store = TCPStore(*place, timeout=answer, wait_for_workers=False)
        count = store.add(done, 1)
        while failed and count < int(environment["WORLD_SIZE"]):
            time.sleep(_POLL_INTERVAL)
            count = store.add(done, 0)
    except RuntimeError:  # torch's DistError
        return
