"""One segment of a clip: evidence -> latents -> pixels, in windows and tiles."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm_video.core.evidence import Evidence, build_evidence, lay_on_grid, pad_evidence, resize
from ldm_video.core.push_pull import push_pull
from ldm_video.core.tensors import size_of
from ldm_video.diffusion.guidance import Denoise, classifier_free_batched
from ldm_video.diffusion.noise import frame_noise
from ldm_video.diffusion.sampler import sample
from ldm_video.diffusion.windows import (
    Region,
    Tile,
    Window,
    even_size,
    merge,
    merge_tiles,
    split,
    tiled,
    tiles,
    windowed,
)
from ldm_video.motion.average import average_along_motion
from ldm_video.pipeline.closing import close_hole
from ldm_video.pipeline.colour import match_colour
from ldm_video.pipeline.composite import dilate, put_back
from ldm_video.pipeline.fidelity import back_project
from ldm_video.pipeline.model import RestorationModel
from ldm_video.pipeline.prompts import Prompts
from ldm_video.pipeline.propagation import with_propagated
from ldm_video.pipeline.steady import steady
from ldm_video.video_io.colour_shift import shift_colour

_ALL = slice(None)
ShareCallback = Callable[[float], None]
"""``callback(share)``: called repeatedly with the fraction of a segment's work that is done, up to 1."""


@dataclass(frozen=True)
class RestoreSettings:
    """How a segment is sampled and composited.

    Attributes:
        steps: sampling steps. 0 leaves everything to a decoder that sees the evidence: latents are zero.
        guidance: classifier-free guidance scale; 1 is none.
        seed: of the noise.
        window: frames that the denoiser and the decoder see at once.
        overlap: frames that adjacent windows share.
        tile: (height, width) in output pixels, or None for whole frames.
        tile_overlap: in output pixels.
        dilate: low-res pixels by which the hole is dilated: resizing and compression have smeared its contents.
        feather: width in output pixels of the border over which known pixels are blended in.
        colour: colour correction, see :func:`ldm_video.pipeline.colour.match_colour`.
        strength: fraction of the steps that are run, starting from the evidence's guess with noise added; 1 starts from
            pure noise.
        noise_level: noise added to the low-res pixels, for a model that is conditioned on it; None adds none.
        propagate: whether what other frames of the segment show inside the hole is propagated first, and is then
            evidence: ``auto`` (if hole or camera move), ``on`` or ``off``.
        fill: what fills the wide parts of the remaining hole: ``model``, or ``patches`` of its surroundings
            (:mod:`ldm_video.pipeline.closing`), which are then evidence.
        average: neighbours on each side with which a low-res frame is averaged along the motion; 0 for none. Not
            applied when only inpainting.
        steady: neighbours on each side with which the output is blended along the motion
            (:mod:`ldm_video.pipeline.steady`); 0 for none. Not applied when only inpainting.
        fidelity: fraction of the residual (input minus downsampled output) that is added back
            (:mod:`ldm_video.pipeline.fidelity`); reduced the more noise ``average`` found. Not applied when only
            inpainting.
    """

    steps: int = 1
    guidance: float = 1.0
    seed: int = 0
    window: int = 12
    overlap: int = 4
    tile: tuple[int, int] | None = None
    tile_overlap: int = 128
    dilate: float = 0.0
    feather: int = 8
    colour: str = "wavelet"
    strength: float = 1.0
    noise_level: int | None = None
    propagate: str = "auto"
    fill: str = "model"
    average: int = 0
    steady: int = 0
    fidelity: float = 0.0


class Restorer:
    """A model and its settings; :meth:`__call__` restores one segment.

    Args:
        model: on its device, in its dtype.
        settings: see :class:`RestoreSettings`.
        text: prompt and negative prompt embeddings, each ``1 n d``, if the model takes them.
        prompts: which prompt holds at which frame; the first of ``text`` then has all its prompts, ``k n d``.
    """

    def __init__(
        self,
        model: RestorationModel,
        settings: RestoreSettings,
        text: tuple[Tensor, Tensor] | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.text = text
        self.prompts = prompts
        parameter = next(iter(model.parameters()))
        self.device, self.dtype = parameter.device, parameter.dtype

    def with_settings(self, **changes: Any) -> Restorer:
        """The same model and prompts with other settings."""
        changed = copy.copy(self)
        changed.settings = replace(self.settings, **changes)
        return changed

    @torch.inference_mode()
    def __call__(
        self,
        frames: Tensor,
        hole: Tensor,
        indices: Sequence[int],
        callback: ShareCallback | None = None,
        before: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> Tensor:
        """Restore a segment.

        Args:
            frames: low-res frames ``t 3 h w`` in [-1, 1].
            hole: ``t 1 H W`` in {0, 1}, at the output's size. At the low-res frames' size, this requests inpainting
                only: every pixel outside the hole is known and returned, blended with the output over ``feather``
                pixels around the hole.
            indices: the frames' absolute indices in the clip, which determine their noise.
            callback: called with the fraction done after every step and at the end.
            before: ``t0 3 H W`` in [-1, 1], the finished first ``t0`` frames: known pixels, returned unchanged.
            shown: ``t0 3 H W`` in [-1, 1], the previous segment's output for the first ``t0`` frames: the fill of the
                hole continues from it.

        Returns ``t 3 H W`` in [-1, 1], float32 on the CPU.
        """
        settings = self.settings
        lowres, hole = frames[None].to(self.device), hole[None].to(self.device)  # b t 3 h w, b t 1 H W
        height, width = hole.shape[-2:]
        hole = dilate(hole, round(settings.dilate * height / lowres.shape[-2]))
        given, hidden = lowres, lay_on_grid(hole[0], size_of(lowres))[None]  # b t 3 h w, b t 1 h w
        # Remove hidden pixels first: filters that reach across the hole's rim would bring them back.
        lowres = push_pull(lowres[0], 1 - hidden[0])[None]
        enlarges = given.shape[-2:] != hole.shape[-2:]
        averaged = average_along_motion(lowres[0], hidden[0], settings.average if enlarges else 0)
        lowres = averaged.frames[None]
        lowres, hole = self._fill_wide_holes(lowres, hole, shown)
        pixels = lowres if lowres.shape[-2:] == hole.shape[-2:] else None
        known = None if pixels is None else 1 - hole
        if before is not None:
            pixels, known = _with_known(before.to(lowres), pixels, known, hole)
        if pixels is not None and known is not None and bool(known.all()):  # nothing is left to restore
            return _to_result(pixels, callback)
        shift = self.model.codec.colour_shift if enlarges else 0.0
        evidence = build_evidence(shift_colour(lowres, shift), hole, known_pixels=pixels, known=known)
        output = self._generate(evidence, indices, callback, before, deflicker=enlarges)  # b t 3 H W
        guess = evidence.guess if shift == 0 else resize(lowres, (height, width))  # without the colour shift
        output = match_colour(output, guess, evidence.hole, settings.colour)
        if enlarges:
            # Do not add back what was averaged away.
            output = back_project(output, given.float(), hidden, settings.fidelity * (1 - averaged.noise))
        if known is not None and pixels is not None:
            output = put_back(output, pixels, 1 - known, settings.feather)
        if before is not None:
            output[:, : len(before)] = before.to(output)
        return _to_result(output, callback)

    def _generate(
        self,
        evidence: Evidence,
        indices: Sequence[int],
        callback: ShareCallback | None,
        before: Tensor | None,
        deflicker: bool,
    ) -> Tensor:
        """Sample, decode, blend along the motion and finish: pixels ``b t 3 H W`` of the evidence's size.

        The finished first frames ``before`` ``t0 3 H W`` take part in the blend and in what the codec finishes.
        """
        height, width = evidence.size
        padded = pad_evidence(evidence, self.model.multiple)
        latents = self.sample(padded, indices, callback).to(self._codec_dtype)
        output = self._decode(latents, padded).float()  # b t 3 H' W'
        if before is not None:
            output[:, : len(before), :, :height, :width] = before.to(output)
        if deflicker:
            output = self._deflickered(output, padded)
        return self._finish(output, padded)[..., :height, :width]

    def _fill_wide_holes(self, lowres: Tensor, hole: Tensor, shown: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fill the hole ``b t 1 H W`` of low-res frames ``b t 3 h w`` from other frames, then with patches.

        Returns the frames and the hole that is left.
        """
        if self.settings.propagate != "off":
            lowres, hole = with_propagated(lowres, hole, always=self.settings.propagate == "on")
        if self.settings.fill == "patches":
            lowres, hole = (x[None] for x in close_hole(lowres[0], hole[0], shown))
        return lowres, hole

    def sample(self, evidence: Evidence, indices: Sequence[int], callback: ShareCallback | None) -> Tensor:
        """Sample scaled latents ``b t c h w`` of the whole segment."""
        factor, settings = self.model.codec.factor, self.settings
        grid = (evidence.size[0] // factor, evidence.size[1] // factor)
        shape = (self.model.codec.latent_channels, *grid)
        if settings.steps == 0:
            return torch.zeros(1, len(indices), *shape, device=self.device, dtype=self.dtype)
        noise = frame_noise(settings.seed, indices, shape, self.model.shared_noise, self.device, self.dtype)[None]
        # Decoding counts as one more step.
        report = (lambda done, total, _: callback(done / (total + 1))) if callback else None
        return sample(
            self._denoiser(evidence, indices),
            self.model.scheduler,
            noise,
            settings.steps,
            start=self._encode_guess(evidence) if settings.strength < 1 else None,
            strength=settings.strength,
            callback=report,
        )

    def _encode_guess(self, evidence: Evidence) -> Tensor:
        return self.model.codec.encode(evidence.guess.to(self._codec_dtype), evidence)

    @property
    def _codec_dtype(self) -> torch.dtype:
        return next(iter(self.model.codec.parameters())).dtype

    def _noise_lowres(self, evidence: Evidence, indices: Sequence[int], level: Tensor) -> Evidence:
        factor = self.model.codec.factor
        shape = (3, evidence.size[0] // factor, evidence.size[1] // factor)
        # Independent of the latents' noise: the complement of a seed is negative, unlike any seed in use.
        noise = frame_noise(~self.settings.seed, indices, shape, self.model.shared_noise, self.device)[None]
        return self.model.noise_lowres(evidence, level, noise)  # b t 3 h w

    def _text_of(self, indices: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Return prompt and negative prompt: each ``1 n d`` for all frames, or ``1 t n d`` if prompts change."""
        if self.text is None or self.prompts is None or len(self.prompts.texts) == 1:
            return self.text
        prompt = self.prompts.text_at(self.text[0], indices)[None]  # 1 t n d
        return prompt, self.text[1][:, None].expand_as(prompt)

    def _denoiser(self, evidence: Evidence, indices: Sequence[int]) -> Denoise:
        """Build the denoiser: guidance inside tiles inside windows."""
        factor, settings = self.model.codec.factor, self.settings
        canvas = self.model.encode_canvas(evidence)  # b t c h w
        level = None if settings.noise_level is None else torch.tensor([settings.noise_level], device=self.device)
        if level is not None:
            evidence = self._noise_lowres(evidence, indices, level)

        def conditional(x: Tensor, timestep: Tensor | float, text: Tensor | None, region: Region) -> Tensor:
            rows, columns = (slice(s.start * factor, s.stop * factor) for s in (region.rows, region.cols))
            part = evidence.crop(region.frames, rows, columns)
            if x.shape[0] != part.guess.shape[0]:  # guidance doubles the batch
                part = part.map(lambda e: e.expand(x.shape[0], *e.shape[1:]))
            if text is not None and text.ndim == 4:
                text = text[:, region.frames]  # b t n d
            seen = None if canvas is None else region.of(canvas).expand_as(x)
            return self.model.predict(x, timestep, part, text, noise_level=level, canvas=seen)

        text = self._text_of(indices)
        if text is None:

            def inner(x: Tensor, timestep: Tensor | float, region: Region) -> Tensor:
                return conditional(x, timestep, None, region)

        else:
            inner = classifier_free_batched(conditional, *text, settings.guidance)
        if settings.tile is not None:
            tile = (settings.tile[0] // factor, settings.tile[1] // factor)
            inner = tiled(inner, tile, (settings.tile_overlap // factor,) * 2)
        return windowed(inner, settings.window, settings.overlap)

    def _decode(self, latents: Tensor, evidence: Evidence) -> Tensor:
        """Decode latents ``b t c h w`` to pixels ``b t 3 (h f) (w f)``, in windows of frames and tiles."""
        frames, overlap = latents.shape[1], self.settings.overlap
        windows = split(frames, even_size(frames, self.settings.window, overlap), overlap)
        return merge((self._decode_window(latents, evidence, window) for window in windows), windows, dim=1)

    def _decode_window(self, latents: Tensor, evidence: Evidence, window: Window) -> Tensor:
        codec, latents = self.model.codec, latents[:, window.slice]
        evidence = evidence.map(lambda x: x[:, window.slice])
        if self.settings.tile is None:
            return codec.decode(latents, evidence)
        grid = self._tiles(evidence.size)

        def decode(tile: Tile) -> Tensor:
            rows, columns = (slice(w.start // codec.factor, w.stop // codec.factor) for w in (tile.rows, tile.cols))
            return codec.decode(latents[..., rows, columns], evidence.crop(_ALL, tile.rows.slice, tile.cols.slice))

        return merge_tiles(map(decode, grid), grid)

    def _deflickered(self, output: Tensor, evidence: Evidence) -> Tensor:
        """Blend decoded pixels ``b t 3 H W`` along the motion of the low-res frames."""
        small = evidence.lowres[0]  # t 3 h w
        return steady(output[0], small, lay_on_grid(evidence.hole[0], size_of(small)), self.settings.steady)[None]

    def _finish(self, output: Tensor, evidence: Evidence) -> Tensor:
        """Finish pixels ``b t 3 H W`` of the whole segment, in tiles of all frames."""
        codec = self.model.codec
        if not codec.finishes or self.settings.tile is None:
            return codec.finish(output, evidence)
        grid = self._tiles(evidence.size)
        parts = (
            (output[..., t.rows.slice, t.cols.slice], evidence.crop(_ALL, t.rows.slice, t.cols.slice)) for t in grid
        )
        return merge_tiles((codec.finish(*part) for part in parts), grid)

    def _tiles(self, size: tuple[int, int]) -> list[Tile]:
        """Return tiles of the settings' size, aligned to the latent grid."""
        factor = self.model.codec.factor
        tile = self.settings.tile or size
        return tiles(*size, tile, (self.settings.tile_overlap // factor * factor,) * 2)


def _to_result(output: Tensor, callback: ShareCallback | None) -> Tensor:
    """Convert ``b t 3 H W`` of the only clip to ``t 3 H W`` in [-1, 1], float32 on the CPU."""
    if callback is not None:
        callback(1.0)
    return output.float().clamp(-1, 1)[0].cpu()


def _with_known(before: Tensor, pixels: Tensor | None, known: Tensor | None, hole: Tensor) -> tuple[Tensor, Tensor]:
    """Make the frames ``before`` ``t0 3 H W`` known: return known pixels ``b t 3 H W`` and their mask ``b t 1 H W``."""
    frames, (height, width) = hole.shape[1], hole.shape[-2:]
    pixels = before.new_zeros(1, frames, 3, height, width) if pixels is None else pixels.clone()
    known = torch.zeros_like(hole) if known is None else known.clone()
    pixels[:, : len(before)], known[:, : len(before)] = before, 1
    return pixels, known
