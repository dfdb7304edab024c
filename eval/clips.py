"""Clips for evaluation: files or folders of frames, matched by name, read one frame at a time.

Nothing is repaired: a gap in the numbering or a mismatch of size or length is an error that names the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import numpy as np
from einops import rearrange

from ldm_video.core.errors import UserError
from ldm_video.video_io.container import VIDEO_SUFFIXES
from ldm_video.video_io.masks import MaskSource, read_mask
from ldm_video.video_io.reader import FrameReader
from ldm_video.video_io.stills import is_image


@dataclass(frozen=True)
class ClipPair:
    """One clip to score: a method's output, the reference and, if given, the mask and the low-res input."""

    name: str
    pred: Path
    ref: Path
    mask: Path | None = None
    lowres: Path | None = None

    def inputs(self) -> dict[str, Path]:
        """Return the given paths by role."""
        roles = {"pred": self.pred, "ref": self.ref, "mask": self.mask, "lowres": self.lowres}
        return {role: path for role, path in roles.items() if path is not None}


def find_clips(root: str | Path) -> dict[str, Path]:
    """Return clip name -> path. A file or a folder of images is one clip; any other folder holds clips.

    Raises ``UserError`` if there is no clip, two clips share a name, or a folder of images also holds clips.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"no such file or folder: {root}")
    if root.is_file() or _holds_images(root):
        _refuse_mixture(root)
        return {_clip_name(root): root}
    clips: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") or not (path.suffix.lower() in VIDEO_SUFFIXES or _holds_images(path)):
            continue
        name = _clip_name(path)
        if name in clips:
            raise UserError(f"two clips are named {name}: {clips[name]} and {path}; remove or rename one")
        clips[name] = path
    if not clips:
        raise UserError(f"{root} holds no video, no folder of frames and no image")
    return clips


def match_clips(
    pred: str | Path, ref: str | Path, mask: str | Path | None = None, lowres: str | Path | None = None
) -> tuple[list[ClipPair], list[str]]:
    """Pair the clips of two folders by name; a single clip pairs with a single clip whatever their names.

    Returns the pairs in the order of the references' names, and a line for each reference that lacks a counterpart.
    Predictions without a reference are ignored. A single mask or low-res clip is only used for a single pair.
    """
    references, predictions = find_clips(ref), find_clips(pred)
    extras = {role: find_clips(path) for role, path in (("mask", mask), ("lowres", lowres)) if path is not None}
    if len(references) == 1 and all(len(found) == 1 for found in (predictions, *extras.values())):
        name, path = next(iter(references.items()))
        others = {role: next(iter(found.values())) for role, found in extras.items()}
        return [ClipPair(name, next(iter(predictions.values())), path, **others)], []
    pairs, missing = [], []
    for name, path in references.items():
        absent = [role for role, found in (("pred", predictions), *extras.items()) if name not in found]
        if absent:
            places = {"pred": pred, "mask": mask, "lowres": lowres}
            missing.append(f"{name}: no clip of that name in {' nor in '.join(str(places[role]) for role in absent)}")
            continue
        pairs.append(ClipPair(name, predictions[name], path, **{role: found[name] for role, found in extras.items()}))
    return pairs, missing


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """Yield frames ``h w c`` float32 RGB in [0, 1], in order, exactly as stored (no deinterlacing).

    Raises ``UserError`` for an unreadable file, a gap in the numbering and, at its end, for a damaged or truncated
    file.
    """
    if path.is_dir():
        check_numbering(path)
    count = 0
    with FrameReader(path, deinterlace="off") as reader:
        for frame in reader:
            count += 1
            yield rearrange(frame.pixels, "c h w -> h w c").add(1.0).div(2.0).clamp(0.0, 1.0).numpy()
        promised = reader.info.frames
    if reader.damage:
        raise UserError(f"{reader.damage[0]}; give a whole file")
    if count == 0 or (promised is not None and count < promised):
        raise UserError(f"{path} ends after {count} of its {promised or 'unknown number of'} frames; it is truncated")


def zip_frames(pair: ClipPair) -> Iterator[dict[str, np.ndarray]]:
    """Yield frames in step by role: ``pred``, ``ref`` and, if given, ``lowres`` (``h w c``) and ``mask`` (``h w``).

    Raises ``UserError`` if lengths or sizes differ. Only a mask is resized (nearest neighbour) or, if it is a single
    frame, repeated.
    """
    streams = {role: frames_of(path) for role, path in pair.inputs().items() if role != "mask"}
    mask: MaskSource | None = None
    count = 0
    try:
        for values in zip_longest(*streams.values()):
            moment = dict(zip(streams, values, strict=True))
            _check_lengths(pair, moment, count)
            _check_sizes(pair, moment)
            if pair.mask is not None:
                mask = mask or read_mask(pair.mask, None, moment["ref"].shape[:2], None)
                moment["mask"] = mask.at(count)[0].numpy()  # 1 h w -> h w
            count += 1
            yield moment
        if mask is not None:
            mask.finish(count)
    finally:
        if mask is not None:
            mask.close()


def _check_lengths(pair: ClipPair, moment: dict[str, np.ndarray | None], count: int) -> None:
    short = [role for role, frame in moment.items() if frame is None]
    if short:
        longer = next(role for role in moment if role not in short)
        shorter, longer = getattr(pair, short[0]), getattr(pair, longer)
        raise UserError(f"{pair.name}: {shorter} has {count} frames, {longer} has more; give clips of the same length")


def _check_sizes(pair: ClipPair, moment: dict[str, np.ndarray]) -> None:
    pred, ref = moment["pred"].shape, moment["ref"].shape
    if pred != ref:
        sizes = f"{pred[1]}x{pred[0]} and {ref[1]}x{ref[0]}"
        raise UserError(f"{pair.name}: {pair.pred} and {pair.ref} differ in size ({sizes}); nothing is resized here")
    if "lowres" in moment and not _is_smaller(moment["lowres"].shape, ref):
        height, width = moment["lowres"].shape[:2]
        raise UserError(
            f"{pair.name}: {pair.lowres} is {width}x{height}, which {pair.ref} ({ref[1]}x{ref[0]}) is not an "
            "enlargement of; give what the method was given"
        )


def _is_smaller(lowres: Sequence[int], ref: Sequence[int]) -> bool:
    """Return whether ``lowres`` is a uniformly smaller, or equal, size of ``ref``, sides rounded up or down."""
    scale = max(large / small for small, large in zip(lowres[:2], ref[:2], strict=True))
    return scale >= 1 and all(abs(large / scale - small) <= 1 for small, large in zip(lowres[:2], ref[:2], strict=True))


def check_numbering(folder: Path) -> None:
    """Raise ``UserError`` for a gap or duplicate in the numbering of a folder of frames; hidden files are ignored."""
    numbers = []
    for path in folder.iterdir():
        if _is_image(path) and (match := re.search(r"(\d+)$", path.stem)):
            numbers.append(int(match[1]))
    numbers.sort()
    for before, after in pairwise(numbers):
        if after != before + 1:
            what = f"frame {before + 1} is missing" if after > before else f"two frames are numbered {after}"
            raise UserError(f"{folder}: {what}")


def _clip_name(path: Path) -> str:
    """Return the name of a file without its suffix, of a folder with its dots."""
    return path.stem if path.is_file() else Path(os.path.abspath(path)).name


def _holds_images(path: Path) -> bool:
    return path.is_dir() and any(_is_image(child) for child in path.iterdir())


def _is_image(path: Path) -> bool:
    return is_image(path) and not path.name.startswith(".")


def _refuse_mixture(folder: Path) -> None:
    """Raise ``UserError`` if a folder of images also holds clips: it could be one clip or several."""
    if folder.is_dir():
        children = sorted(folder.iterdir())
        image = next(child for child in children if _is_image(child))
        video = next((child for child in children if child.suffix.lower() in VIDEO_SUFFIXES), None)
        if video is not None:
            raise UserError(f"{folder} holds images and videos, such as {image.name} and {video.name}; keep one kind")
        clip = next((child for child in children if not child.name.startswith(".") and _holds_images(child)), None)
        if clip is not None:
            raise UserError(
                f"{folder} holds images and folders of frames, such as {image.name} and {clip.name}; keep one kind"
            )
