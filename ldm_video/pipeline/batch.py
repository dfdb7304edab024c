"""Batch mode: restore every video below a folder to its mirrored path; one bad file does not stop the rest.

Processes split an archive by whole clips. They communicate through files alone, as those that share one clip do.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_video.core.errors import UserError
from ldm_video.core.files import Taken, atomic_path
from ldm_video.core.locks import locked
from ldm_video.pipeline.job import Outcome
from ldm_video.pipeline.journal import Journal
from ldm_video.pipeline.names import follow_link
from ldm_video.pipeline.workers import Share
from ldm_video.video_io.container import VIDEO_SUFFIXES
from ldm_video.video_io.encoders import find_encoder
from ldm_video.video_io.stills import is_image, natural_key


@dataclass(frozen=True)
class Clip:
    """A video of an archive. ``name``: its path below the archive's folder; ``size``: in bytes."""

    name: Path
    source: Path
    output: Path
    size: int

    @property
    def done(self) -> bool:
        """Whether the output exists and no run was killed while putting it and its comparison in place."""
        return self.output.exists() and not Journal(self.output).joining


def is_archive(source: Path, output: Path, masks: Path | None = None) -> bool:
    """Return whether ``source`` is a folder of clips: it holds a video, also in subfolders, and ``output`` is a folder.

    ``masks`` do not count as clips. If ``output`` is a file, ``source`` is one clip: a folder of frames. Raises
    ``UserError`` if it then holds videos but no image.
    """
    if not source.is_dir():
        return False
    video = next(_videos(source, (output, masks)), None)
    if video is None or not _names_a_file(output):
        return video is not None
    if not any(is_image(path) for path in source.iterdir()):
        raise UserError(
            f"{source} is a folder of videos, such as {video.name}; give a folder as --output, not {output}"
        )
    return False


def list_clips(
    source: Path,
    target: Path,
    codec: str,
    also: Sequence[Callable[[Path], Path]] = (),
    masks: Path | None = None,
) -> tuple[list[Clip], list[Path]]:
    """Return the clips of an archive, in natural order of their names, and the files that are not videos.

    Hidden files and folders, ``target`` itself and ``masks`` are excluded. ``also``: functions that map an output's
    path to that of another file written with it. Raises ``UserError`` if two clips would be written to one file, if
    ``target`` is the input or a file, and for an unknown codec.
    """
    find_encoder(codec)
    if target.exists() and (not target.is_dir() or target.resolve() == source.resolve()):
        raise UserError(f"{target} is {'the input' if target.is_dir() else 'no folder'}; choose another folder")
    clips, owners = list[Clip](), dict[Path, Path]()
    files = sorted(_files(source, (target, masks)), key=lambda path: natural_key(str(path)))
    for path in filter(_is_video, files):
        name = path.relative_to(source)
        size = path.stat().st_size if path.exists() else 0  # a broken link fails when its turn comes
        clip = Clip(name, path, follow_link(target / name.with_suffix(output_suffix(name, codec))), size)
        for written in (clip.output, *(make(clip.output) for make in also)):
            if written in owners:
                raise UserError(f"{owners[written]} and {name} would both be written to {written}; rename one of them")
            owners[written] = name
        clips.append(clip)
    return clips, [path for path in files if not _is_video(path)]


def output_suffix(name: Path, codec: str) -> str:
    """Return the source's suffix if such a file can hold the codec, else ``.mkv``, which holds any audio."""
    return name.suffix if name.suffix.lower() in find_encoder(codec).containers.split() else ".mkv"


def find_mask(masks: Path | None, name: Path) -> Path | None:
    """Return the mask of the clip ``name``: ``masks`` itself unless it is a folder, else the clip's entry in it.

    The entry is a video or image of the clip's stem, or a folder of frames. Raises ``UserError`` if there is none, or
    several.
    """
    if masks is None or not masks.is_dir():
        return masks
    folder = (masks / name).parent
    found = [path for path in (folder.iterdir() if folder.is_dir() else ()) if _is_mask(path, name.stem)]
    if len(found) != 1:
        what = f"{len(found)} masks" if found else "no mask"
        raise UserError(
            f"there is {what} for {name} in {masks}; expected one {folder / name.stem}.* or folder of frames"
        )
    return found[0]


def own_clips(clips: Sequence[Clip], share: Share) -> list[Clip]:
    """Return every N-th clip by decreasing size, to spread long clips over processes, in the order of ``clips``."""
    by_size = sorted(clips, key=lambda clip: -clip.size)  # stable: clips of equal size stay in order
    own = {clip.name for clip in by_size[share.index :: share.count]}
    return [clip for clip in clips if clip.name in own]


class Report:
    """``OUTPUT/report.json``: the state of each clip, correct at any moment, however the process ends.

    All processes share one file. Each updates the entries of its own clips under a lock, with an atomic rename.
    """

    def __init__(self, path: Path, clips: Sequence[Clip], own: Sequence[Clip], shared: bool) -> None:
        self.path, self._shared = path, shared
        with self._locked():
            before = self._read()
            mine = {clip.name for clip in own}
            self._write(
                {
                    str(clip.name): _waiting(clip) if clip.name in mine else before.get(str(clip.name), _waiting(clip))
                    for clip in clips
                }
            )

    def enter(self, clip: Clip, state: str, **facts: Any) -> None:
        """Record a clip's ``state`` (``done``, ``skipped`` or ``failed``) and further ``facts``."""
        with self._locked():
            self._write(self._read() | {str(clip.name): {"state": state, "output": str(clip.output), **facts}})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._shared:
            yield
            return
        with locked(_lock_folder(self.path.parent) / self.path.stem):
            yield

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8", errors="surrogateescape"))["clips"])
        except (OSError, ValueError, KeyError, TypeError):  # no report yet, or another program's file
            return {}

    def _write(self, entries: dict[str, Any]) -> None:
        states = Counter(entry["state"] for entry in entries.values())
        counts = {state: states[state] for state in ("done", "skipped", "failed", "waiting")}
        with atomic_path(self.path) as temporary:
            text = json.dumps(counts | {"clips": entries}, indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def run_batch(
    clips: Sequence[Clip],
    report: Report | None,
    work: Callable[[Clip], Outcome],
    redo: bool,
    complain: Callable[[str], None],
) -> Counter[str]:
    """Run ``work`` on every clip in turn; return the number of clips in each state.

    An error fails only its own clip, and is printed and reported; only the end of the process ends the batch. Clips
    whose output exists are skipped unless ``redo``.
    """
    states = Counter[str]()
    for clip in clips:
        state, facts = _skip(clip, complain) if clip.done and not redo else _attempt(clip, work, complain)
        if report is not None:
            Journal(clip.output).clear()  # also for a skipped clip
            report.enter(clip, state, **facts)
        states[state] += 1
    return states


def _skip(clip: Clip, complain: Callable[[str], None]) -> tuple[str, dict[str, Any]]:
    complain(f"{clip.name}: skipped, {clip.output} is there")
    return "skipped", {"why": "the output is there"}


def _attempt(
    clip: Clip, work: Callable[[Clip], Outcome], complain: Callable[[str], None]
) -> tuple[str, dict[str, Any]]:
    started = time.monotonic()
    try:
        outcome = work(clip)
        if outcome.pending:
            raise UserError(outcome.pending)
    except Taken:
        return _skip(clip, complain)
    except Exception as error:
        if isinstance(error, UserError):
            line = str(error)
        else:  # a bug: its traceback is useful, and the other clips may not hit it
            line = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        complain(f"{clip.name}: {line}")
        return "failed", {"error": line, "seconds": round(time.monotonic() - started, 2)}
    facts = {"frames": outcome.frames, "seconds": round(outcome.seconds, 2)}
    return "done", facts | ({"warnings": outcome.warnings} if outcome.warnings else {})


@contextmanager
def at_work(target: Path, share: Share) -> Iterator[None]:
    """Hold the lock on this process's share of the archive. Raises ``UserError`` if another process holds it."""
    if share.count == 1:
        yield
        return
    with locked(_lock_folder(target) / f"share-{share.index}", wait=False) as mine:
        if not mine:
            raise UserError(f"another process is at work on share {share} of {target}; wait for it or stop it")
        yield


def _lock_folder(target: Path) -> Path:
    folder = target / ".shares"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror}); choose another output") from error
    return folder


def _waiting(clip: Clip) -> dict[str, Any]:
    return {"state": "waiting", "output": str(clip.output)}


def _videos(source: Path, apart: Sequence[Path | None]) -> Iterator[Path]:
    return filter(_is_video, _files(source, apart))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _files(source: Path, apart: Sequence[Path | None]) -> Iterator[Path]:
    """Yield every file below ``source``, except hidden files, those in ``apart``, and the contents of such folders."""
    for folder, folders, files in os.walk(source):
        here = Path(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and not _among(here / name, apart)]
        yield from (here / name for name in files if not name.startswith(".") and not _among(here / name, apart))


def _among(path: Path, apart: Sequence[Path | None]) -> bool:
    return any(path.name == other.name and path.resolve() == other.resolve() for other in apart if other is not None)


def _names_a_file(output: Path) -> bool:
    return not output.is_dir() and (_is_video(output) or is_image(output))


def _is_mask(path: Path, stem: str) -> bool:
    if path.is_dir():
        return path.name == stem
    return path.stem == stem and (is_image(path) or _is_video(path))
