"""Frozen, seeded benchmark inputs from reference clips: what a method is given, and what it should have made.

For each clip: the reference, cropped to multiples of 16; the low-res clip of a track; the hole, when the track has
one. A hole is painted over before the clip is degraded, so that the low-res file tells nothing of what was there.
Files are kept and not built again while recipe and source stay the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from eval.clips import find_clips, frames_of
from eval.degradations import moving_blob, shrink
from eval.results import write_json
from ldm_video.core.errors import UserError
from ldm_video.video_io.probe import DEFAULT_RATE, probe
from ldm_video.video_io.writer import VideoWriter

CROP = 16
PAINT = 0.5  # mid grey in [0, 1]
LOSSLESS = "ffv1"


@dataclass(frozen=True)
class Track:
    """How a reference becomes an input.

    Attributes:
        blur_sigma: Gaussian, in reference pixels.
        noise_sigma: Gaussian, in levels of 0..255, after the antialiased bicubic resize.
        crf: x264's; negative stores the low-res clip losslessly.
        hole_area: share of the frame that a moving blob covers; 0 has no hole.
    """

    name: str
    blur_sigma: float = 0.0
    noise_sigma: float = 0.0
    crf: int = -1
    hole_area: float = 0.0


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
    root: str | Path, out: Path, track: Track, scale: int, seed: int, limit: int | None = None
) -> list[BenchmarkInput]:
    """Build (or find again) the inputs of a track for every clip under ``root``.

    ``limit`` keeps the first so many frames. The random numbers of a clip depend on ``seed``, its name and the track
    alone. Raises ``UserError`` for a clip smaller than the crop.
    """
    if CROP % scale:
        raise UserError(f"scale {scale} does not divide the crop's step of {CROP}; use 2, 4, 8 or 16")
    return [_build(name, path, out, track, scale, seed, limit) for name, path in find_clips(root).items()]


def _build(
    name: str, source: Path, out: Path, track: Track, scale: int, seed: int, limit: int | None
) -> BenchmarkInput:
    ref = _build_reference(name, source, out / "ref", limit)
    folder = out / track.name
    lowres = folder / "lowres" / f"{name}.{'mp4' if track.crf >= 0 else 'mkv'}"
    mask = folder / "mask" / f"{name}.mkv" if track.hole_area > 0 else None
    recipe = {"track": asdict(track), "scale": scale, "seed": seed, "ref": _state(ref.path)}
    note = folder / f"{name}.json"
    found = BenchmarkInput(name, ref.path, lowres, mask, ref.frames, scale)
    if _same(note, recipe) and lowres.is_file() and (mask is None or mask.is_file()):
        return found
    rng = np.random.default_rng(_clip_seed(seed, name, track.name))
    holes = None
    if mask is not None:
        holes = moving_blob(rng, ref.frames, ref.size, track.hole_area)  # t h w
        white = (torch.from_numpy(hole).float().expand(3, -1, -1) * 2 - 1 for hole in holes)
        _write(mask, white, ref.size, ref.rate, LOSSLESS)
    small = (ref.size[0] // scale, ref.size[1] // scale)
    frames = _degraded(ref.path, holes, track, scale, rng)
    _write(lowres, frames, small, ref.rate, "libx264" if track.crf >= 0 else LOSSLESS, max(track.crf, 0))
    write_json(note, recipe)
    return found


@dataclass(frozen=True)
class _Reference:
    path: Path
    frames: int
    size: tuple[int, int]
    rate: Fraction


def _build_reference(name: str, source: Path, folder: Path, limit: int | None) -> _Reference:
    info = probe(source)
    rate = info.rate or DEFAULT_RATE
    size = (info.height // CROP * CROP, info.width // CROP * CROP)
    if 0 in size:
        raise UserError(f"{source} is smaller than {CROP}x{CROP}; the benchmark needs larger clips")
    path, note = folder / f"{name}.mkv", folder / f"{name}.json"
    recipe = {"source": _state(source), "limit": limit}
    if path.is_file() and _same(note, recipe):
        return _Reference(path, json.loads(note.read_text())["frames"], size, rate)
    count = _write(path, _cropped(source, size, limit), size, rate, LOSSLESS)
    write_json(note, recipe | {"frames": count})
    return _Reference(path, count, size, rate)


def _cropped(source: Path, size: tuple[int, int], limit: int | None) -> Iterator[Tensor]:
    """Top left crop, ``c h w`` in [-1, 1]."""
    for index, frame in enumerate(frames_of(source)):
        if limit is not None and index >= limit:
            return
        yield _to_pixels(frame[: size[0], : size[1]])


def _degraded(
    ref: Path, holes: np.ndarray | None, track: Track, scale: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    for index, frame in enumerate(frames_of(ref)):
        painted = frame if holes is None else np.where(holes[index][..., None] > 0, np.float32(PAINT), frame)
        yield _to_pixels(shrink(painted, scale, track.blur_sigma, track.noise_sigma, rng))


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


def _state(path: Path) -> list[list[str | int]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _same(note: Path, recipe: Mapping[str, object]) -> bool:
    """Whether ``note`` records this recipe (and perhaps more)."""
    try:
        recorded = json.loads(note.read_text())
    except (OSError, ValueError):
        return False
    return {key: recorded.get(key) for key in recipe} == json.loads(json.dumps(recipe))
