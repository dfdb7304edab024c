"""On-disk journal of a clip's finished work: the same command resumes where the last run stopped.

The journal is a folder beside the output, ``.NAME.parts``:

- ``journal.json``: the job's identity (inputs, model, every setting that affects pixels or encoding) and the clip's
  survey, from which the plan follows;
- ``000007.result``, ``000007.compare``: the finished part of segment 7, one per output;
- ``000007.fade.result``: the frames where its chain is cross-faded with the previous chain;
- ``000007.head``, ``000007.tail``: outputs at its ends that a neighbour still needs;
- ``joining``: the outputs are being put in place;
- ``lock`` and ``share-K``: locks of the running processes.

Every file is complete: it is written under another name and renamed atomically.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path
from ldm_video.core.locks import is_held, locked
from ldm_video.pipeline.workers import Share

FORMAT = 1
_LEVELS = 65535 / 2  # half the 16-bit range


@dataclass(frozen=True)
class Survey:
    """Result of one pass over a clip: number of frames, indices of those that begin a shot, and warnings."""

    frames: int
    cuts: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


class Journal:
    """The folder for one output. Nothing is created before :meth:`hold`."""

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f".{output.name}.parts")

    def file(self, number: int, kind: str) -> Path:
        """Return the path of segment ``number``'s ``kind``: ``head``, ``tail``, or a part's name."""
        return self.folder / f"{number:06d}.{kind}"

    @property
    def joining(self) -> bool:
        """Whether any command was putting the outputs in place: an existing output may be its own."""
        return self.exists and (self.folder / "joining").exists()

    def joins(self, identity: Mapping[str, Any]) -> bool:
        """Return whether this same job was putting the outputs in place: an existing output is its own."""
        kept = self._read()
        return self.joining and kept is not None and not changes(kept["identity"], identity)

    def survey(self, identity: Mapping[str, Any]) -> Survey | None:
        """Return the kept survey if it belongs to the same job, else None."""
        kept = self._read()
        if kept is None or changes(kept["identity"], identity):
            return None
        return Survey(kept["survey"]["frames"], tuple(kept["survey"]["cuts"]), tuple(kept["survey"]["warnings"]))

    def identity(self) -> dict[str, Any]:
        """The identity of the job that is kept; empty where none is."""
        kept = self._read()
        return {} if kept is None else kept["identity"]

    @property
    def exists(self) -> bool:
        return (self.folder / "journal.json").exists()

    @contextmanager
    def hold(self, identity: Mapping[str, Any] | None, survey: Survey | None, share: Share) -> Iterator[str]:
        """Hold the lock of ``share``. Yields why kept work was unusable (``""``: it was usable, or there was none).

        ``survey`` is None if nothing will be kept, as for a clip of one segment; so is ``identity`` if nothing was kept
        either. Raises ``UserError`` while another process does the same share, or works here with other settings.
        """
        mine = self.folder / f"share-{share.index}"
        with self._locked():
            if is_held(mine):
                raise UserError(f"another process is at work on {self._named(share)}; wait for it or stop it")
            reason = self._begin(identity, survey)
            working = ExitStack()
            if share.count == 1 or survey is None:  # else share-K stays, to show that the share has begun
                working.callback(self._leave)
            working.enter_context(locked(mine, wait=False))
        with working:
            yield reason

    def others(self, share: Share) -> tuple[list[int], list[int]]:
        """Return the indices (from 0) of the other shares at work now, and of those that have not begun."""
        others = [i for i in range(share.count) if i != share.index]
        return (
            [i for i in others if is_held(self.folder / f"share-{i}")],
            [i for i in others if not (self.folder / f"share-{i}").exists()],
        )

    def keep_frames(self, number: int, kind: str, frames: Tensor, times: list[Fraction]) -> None:
        """Store ``t 3 H W`` in [-1, 1] in 16 bits, with presentation times in seconds."""
        arrays = {
            "frames": to_levels(frames),
            "times": np.array([[t.numerator, t.denominator] for t in times], np.int64).reshape(-1, 2),
        }
        with atomic_path(self.file(number, kind)) as temporary:
            temporary.write_bytes(save(arrays))

    def frames(self, number: int, kind: str) -> tuple[Tensor, list[Fraction]]:
        """Load what :meth:`keep_frames` stored: ``t 3 H W`` in [-1, 1], and times.

        Raises ``FileNotFoundError`` if there is nothing, ``UserError`` if the file is damaged.
        """
        path = self.file(number, kind)
        try:
            arrays = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); remove {self.folder} and start over") from error
        return from_levels(arrays["frames"]), [Fraction(int(n), int(d)) for n, d in arrays["times"]]

    def drop(self, number: int, kind: str) -> None:
        with suppress(FileNotFoundError):
            self.file(number, kind).unlink()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Hold the folder's lock for the last step. Yields False if another process did it and the folder is gone."""
        if not self.folder.exists():
            yield False
            return
        with self._locked():
            yield self.exists
        if not self.exists:
            self.remove()

    def discard(self) -> None:
        """Remove what is kept; raises ``UserError`` while a process is at work here."""
        if self._in_use():
            raise UserError(f"another process is at work in {self.folder}; wait for it or stop it")
        self.remove()

    def remove(self) -> None:
        """Remove the folder. If interrupted, it leaves one without ``journal.json``, which counts as empty."""
        with suppress(OSError):
            (self.folder / "journal.json").unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove what is left of a folder whose removal was interrupted."""
        if not self.folder.exists() or self.exists:
            return
        with suppress(UserError), self._locked():  # if it cannot be removed, it does no harm
            if not self.exists and not self._in_use():
                self.remove()

    def _begin(self, identity: Mapping[str, Any] | None, survey: Survey | None) -> str:
        kept = self._read()
        different = [] if kept is None or identity is None else changes(kept["identity"], identity)
        if kept is not None and survey is not None and not different:
            if not self._in_use():
                self._remove(".*.part*")  # what a killed process was writing
            return ""
        if self._in_use():
            what = f" with another {different[0]}" if different else ""
            raise UserError(f"another process is at work in {self.folder}{what}; wait for it")
        self._remove("[!l]*", ".*", keep=self.folder / "lock")
        if survey is None:
            return ", ".join(different)
        with atomic_path(self.folder / "journal.json") as temporary:
            content = {"format": FORMAT, "identity": identity, "survey": asdict(survey)}
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
        return ", ".join(different)

    def _leave(self) -> None:
        """Remove the folder if nothing is kept in it."""
        if not self.folder.exists():
            return
        with self._locked():
            if not self._in_use() and not any(self.folder.glob("[0-9]*.*")):
                self.remove()

    def _in_use(self) -> bool:
        return any(map(is_held, self.folder.glob("share-*")))

    def _read(self) -> dict[str, Any] | None:
        try:
            kept = json.loads((self.folder / "journal.json").read_text())
        except (OSError, ValueError):
            return None
        return kept if isinstance(kept, dict) and kept.get("format") == FORMAT else None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's own lock; retry if the folder was removed while waiting for it."""
        path = self.folder / "lock"
        while True:
            with ExitStack() as stack:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(locked(path))
                except OSError as error:
                    raise UserError(f"cannot write {self.folder} ({error.strerror}); choose another output") from error
                if path.exists():
                    yield
                    return

    def _remove(self, *patterns: str, keep: Path | None = None) -> None:
        for path in {path for pattern in patterns for path in self.folder.glob(pattern)} - {keep}:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _named(self, share: Share) -> str:
        return str(self.folder) if share.count == 1 else f"share {share} of {self.folder}"


def changes(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the sorted names of the entries that differ."""
    now = json.loads(json.dumps(now))  # tuples become lists, as they did in the file
    return sorted(key for key in kept.keys() | now.keys() if kept.get(key) != now.get(key))


def file_facts(path: Path | None) -> list[Any] | None:
    """Return a file's path, size and modification time in ns; None for None.

    For a folder: its path and a digest of its files' names, sizes and times.
    """
    if path is None:
        return None
    if not path.is_dir():
        return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(entry for entry in path.iterdir() if entry.is_file()):
        facts = file.stat()
        digest.update(f"{file.name!r} {facts.st_size} {facts.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return [str(path.resolve()), digest.hexdigest()]


def hash_tensors(tensors: tuple[Tensor, ...]) -> str:
    """Hash the values of small tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def to_levels(frames: Tensor) -> np.ndarray:
    """Convert [-1, 1] to 16 bits; every 8-bit value is exactly one of the levels."""
    return ((frames.float().clamp(-1, 1) + 1) * _LEVELS).round().cpu().numpy().astype(np.uint16)


def from_levels(levels: np.ndarray) -> Tensor:
    """Convert 16 bits to [-1, 1]."""
    return torch.from_numpy(levels.astype(np.float32)) / _LEVELS - 1


def in_levels(frames: Tensor) -> Tensor:
    """Round-trip ``frames`` through 16 bits: the same values whether a run was interrupted or not."""
    return from_levels(to_levels(frames))
