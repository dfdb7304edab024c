"""Frozen, seeded benchmark inputs built from reference clips.

For each clip: the reference, cropped to multiples of 16; the low-res clip of a track; the hole, if the track has one.
A hole is painted over before the clip is degraded, so that the low-res file reveals nothing of what was there. Files
are rebuilt only when recipe or source change.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from eval.broadcast import RATE, write_broadcast
from eval.clips import find_clips, frames_of
from eval.degradations import shrink
from eval.file_states import file_states
from eval.holes import FAMILIES, OBJECT, MaskOf, read_object
from eval.results import write_json
from ldm_video.core.errors import UserError
from ldm_video.video_io.probe import DEFAULT_RATE, probe
from ldm_video.video_io.writer import VideoWriter

FORMAT = 3  # raise it if the same recipe gives different pixels: inputs are then rebuilt and rescored
CROP = 16
MOST_HOLE = 0.9  # fraction of a frame; a larger box would leave nothing around it
PAINT = 0.5  # mid grey in [0, 1]
LOSSLESS = "ffv1"


@dataclass(frozen=True)
class Track:
    """How a reference becomes an input.

    Attributes:
        blur_sigma: Gaussian, in reference pixels.
        noise_sigma: Gaussian, in levels of 0..255, after the antialiased bicubic resize.
        crf: x264's; negative stores the low-res clip losslessly.
        hole_area: fraction of the frame that the hole covers; 0 for no hole.
        hole: one of the drawn families, or ``object`` for masks from a folder, whose area is as it is.
        broadcast_bits: bits per low-res pixel of interlaced MPEG-2; 0 is progressive. The reference's frames become
            fields, so the clip has half as many frames, and its reference is every second frame, at 25 fps.

    Raises ``UserError`` for values out of range, and for ``broadcast_bits`` together with a hole or ``crf``.
    """

    name: str
    blur_sigma: float = 0.0
    noise_sigma: float = 0.0
    crf: int = -1
    hole_area: float = 0.0
    hole: str = "blob"
    broadcast_bits: float = 0.0

    def __post_init__(self) -> None:
        if self.hole not in (*FAMILIES, OBJECT):
            raise UserError(f"track {self.name}: unknown hole {self.hole!r}; there are {', '.join(FAMILIES)}, {OBJECT}")
        for value in (self.blur_sigma, self.noise_sigma, self.hole_area, self.broadcast_bits):
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise UserError(f"track {self.name}: {value!r} is not a number of 0 or more")
        if not isinstance(self.crf, int) or isinstance(self.crf, bool) or self.crf > 51:
            raise UserError(f"track {self.name}: crf is {self.crf!r}; give 0 to 51, or a negative number for lossless")
        if self.hole_area > MOST_HOLE:
            raise UserError(f"track {self.name}: hole_area is {self.hole_area}; it is a share, {MOST_HOLE} at most")
        if self.interlaced and (self.has_hole or self.crf >= 0):
            raise UserError(f"track {self.name}: broadcast_bits goes with neither a hole nor crf; use two tracks")

    @property
    def has_hole(self) -> bool:
        """Whether the track's clips come with a mask."""
        return self.hole_area > 0 or self.hole == OBJECT

    @property
    def interlaced(self) -> bool:
        """Whether the low-res clip is made of fields."""
        return self.broadcast_bits > 0


@dataclass(frozen=True)
class BenchmarkInput:
    """The files of one clip on one track; the low-res clip is ``scale`` times smaller than the reference."""

    clip: str
    ref: Path
    lowres: Path
    mask: Path | None
    frames: int
    scale: int


def build_inputs(
    root: str | Path,
    out: Path,
    track: Track,
    scale: int,
    seed: int,
    limit: int | None = None,
    masks: str | Path | None = None,
) -> list[BenchmarkInput]:
    """Build the inputs of a track for every clip under ``root``, or reuse those that are up to date.

    ``limit`` keeps that many frames from the start. ``masks`` holds ``CLIP/%05d.png`` for a track of object masks,
    which includes only the clips that have them. A clip's random numbers depend only on ``seed``, its name and the
    track. Raises ``UserError`` for a clip smaller than the crop, and if ``scale`` does not divide the crop's step.
    """
    if CROP % scale:
        raise UserError(f"scale {scale} does not divide the crop's step of {CROP}; use 2, 4, 8 or 16")
    clips = find_clips(root)
    if track.hole == OBJECT:
        clips = {name: path for name, path in clips.items() if masks is not None and (Path(masks) / name).is_dir()}
    given = []
    for name, path in clips.items():
        ref = _build_reference(name, path, out / "ref", limit)
        if track.interlaced:
            given.append(_build_interlaced(name, ref, out, track, scale, seed))
        else:
            objects = Path(masks) / name if masks is not None and track.hole == OBJECT else None
            given.append(_build(name, ref, out, track, scale, seed, objects))
    return given


@dataclass(frozen=True)
class _Reference:
    """A cropped reference. ``source_size``: before it was cropped to ``size``; both are (height, width)."""

    path: Path
    frames: int
    size: tuple[int, int]
    source_size: tuple[int, int]
    rate: Fraction


def _build(
    name: str, ref: _Reference, out: Path, track: Track, scale: int, seed: int, objects: Path | None
) -> BenchmarkInput:
    folder = out / track.name
    lowres = folder / "lowres" / f"{name}.{'mp4' if track.crf >= 0 else 'mkv'}"
    mask = folder / "mask" / f"{name}.mkv" if track.has_hole else None
    recipe = _recipe(ref, track, scale, seed) | ({"objects": file_states(objects)} if objects else {})
    note = folder / f"{name}.json"
    found = BenchmarkInput(name, ref.path, lowres, mask, ref.frames, scale)
    if _is_current(note, recipe) and lowres.is_file() and (mask is None or mask.is_file()):
        return found
    note.unlink(missing_ok=True)  # it describes files that are about to be replaced
    rng = np.random.default_rng(_clip_seed(seed, name, track.name))
    holes = None
    if mask is not None:
        if objects is None:
            holes = FAMILIES[track.hole](rng, ref.frames, ref.size, track.hole_area)
        else:
            holes = read_object(objects, ref.frames, ref.source_size, ref.size)
        drawn = (torch.from_numpy(holes(index)).float() for index in range(ref.frames))  # h w
        _write(mask, (hole.expand(3, -1, -1) * 2 - 1 for hole in drawn), ref.size, ref.rate, LOSSLESS)
    small = (ref.size[0] // scale, ref.size[1] // scale)
    frames = (_to_pixels(frame) for frame in _degraded(ref.path, holes, track, scale, rng))
    _write(lowres, frames, small, ref.rate, "libx264" if track.crf >= 0 else LOSSLESS, max(track.crf, 0))
    write_json(note, recipe)
    return found


def _build_interlaced(name: str, ref: _Reference, out: Path, track: Track, scale: int, seed: int) -> BenchmarkInput:
    if ref.frames < 2:
        raise UserError(f"{name} has one frame; a frame of the track {track.name} takes two, one for each field")
    folder = out / track.name
    firsts, lowres = folder / "ref" / f"{name}.mkv", folder / "lowres" / f"{name}.mkv"
    recipe = _recipe(ref, track, scale, seed) | {"matrix": "bt601"}  # tagged in the file; formerly guessed
    note, count = folder / f"{name}.json", ref.frames // 2
    found = BenchmarkInput(name, firsts, lowres, None, count, scale)
    if _is_current(note, recipe) and lowres.is_file() and firsts.is_file():
        return found
    note.unlink(missing_ok=True)
    rng = np.random.default_rng(_clip_seed(seed, name, track.name))
    moments = ((frame * 255).round().astype(np.uint8) for frame in _degraded(ref.path, None, track, scale, rng))
    write_broadcast(lowres, moments, (ref.size[0] // scale, ref.size[1] // scale), track.broadcast_bits)
    # the expected frame: its first field's moment, ignoring the second field
    truth = (_to_pixels(frame) for frame in islice(frames_of(ref.path), 0, 2 * count, 2))
    _write(firsts, truth, ref.size, RATE, LOSSLESS)
    write_json(note, recipe)
    return found


def _recipe(ref: _Reference, track: Track, scale: int, seed: int) -> dict[str, object]:
    return {"format": FORMAT, "track": asdict(track), "scale": scale, "seed": seed, "ref": file_states(ref.path)}


def _build_reference(name: str, source: Path, folder: Path, limit: int | None) -> _Reference:
    info = probe(source)
    rate = info.rate or DEFAULT_RATE
    size = (info.height // CROP * CROP, info.width // CROP * CROP)
    if 0 in size:
        raise UserError(f"{source} is smaller than {CROP}x{CROP}; the benchmark needs larger clips")
    path, note = folder / f"{name}.mkv", folder / f"{name}.json"
    source_size = (info.height, info.width)
    recipe = {"source": file_states(source), "limit": limit}
    if path.is_file() and _is_current(note, recipe):
        return _Reference(path, json.loads(note.read_text())["frames"], size, source_size, rate)
    note.unlink(missing_ok=True)
    count = _write(path, _cropped(source, size, limit), size, rate, LOSSLESS)
    write_json(note, recipe | {"frames": count})
    return _Reference(path, count, size, source_size, rate)


def _cropped(source: Path, size: tuple[int, int], limit: int | None) -> Iterator[Tensor]:
    """Yield top-left crops, ``c h w`` in [-1, 1]."""
    for index, frame in enumerate(frames_of(source)):
        if limit is not None and index >= limit:
            return
        yield _to_pixels(frame[: size[0], : size[1]])


def _degraded(
    ref: Path, holes: MaskOf | None, track: Track, scale: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield low-res frames ``h w 3`` in [0, 1]."""
    for index, frame in enumerate(frames_of(ref)):
        painted = frame if holes is None else np.where(holes(index)[..., None] > 0, np.float32(PAINT), frame)
        yield shrink(painted, scale, track.blur_sigma, track.noise_sigma, rng)


def _write(
    path: Path, frames: Iterator[Tensor], size: tuple[int, int], rate: Fraction, codec: str, crf: int = 0
) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, size, None, rate, codec=codec, crf=crf, overwrite=True) as writer:
        for pixels in frames:
            writer.write(pixels)
    return writer.frames


def _to_pixels(frame: np.ndarray) -> Tensor:
    return rearrange(torch.from_numpy(np.ascontiguousarray(frame)), "h w c -> c h w") * 2 - 1


def _clip_seed(seed: int, *names: str) -> list[int]:
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return [seed, int.from_bytes(digest[:8], "big")]


def _is_current(note: Path, recipe: Mapping[str, object]) -> bool:
    """Return whether ``note`` records this recipe (and perhaps more)."""
    try:
        recorded = json.loads(note.read_text())
    except (OSError, ValueError):
        return False
    return {key: recorded.get(key) for key in recipe} == json.loads(json.dumps(recipe))
