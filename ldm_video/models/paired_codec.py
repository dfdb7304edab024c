"""A codec whose pictures blend its own decoder's with those of a large restorer.

Networks trained separately make different errors, so a blend of their pictures is closer to the truth than either, in
PSNR, LPIPS and DISTS alike (docs/model-log.md): the restorer draws cleaner edges than a small decoder learns, and the
decoder stays faithful to the low-res frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.evidence import Evidence, lay_on_grid, resize
from ldm_video.core.tensors import fold_time, size_of, unfold_time
from ldm_video.models.blocks import Box, boxes_below
from ldm_video.models.codec import BasisCodec, EvidenceDecoder, VideoCodec
from ldm_video.models.dense_restorer import ENLARGES, DenseRestorer
from ldm_video.motion.alignment import AlignedClip, can_align
from ldm_video.motion.carry import Repair, carry, frames_between, key_frames, sureness

_ALL = slice(None)
_MIN_AREA_RATIO = 4  # output pixels per low-res pixel from which the restorer is used
_MASK_MARGIN = 8  # margin in output pixels around holes and known pixels without the restorer, and width of the fade
_BLOCK = 24  # side of a repair block in low-res pixels
_REPAIR_BELOW = 0.8  # a block is repaired if its mean confidence is below this
# Largest fraction of a frame's blocks that is repaired: with margins, two frames then cost as much as one key frame.
_MAX_REPAIRED = 0.25
_REPAIR_MARGIN = 4  # margin in low-res pixels in which repairs fade out; the restorer sees twice that margin


class PairedCodec(BasisCodec):
    """Outside holes and known pixels, a blend of ``1 - share`` times the decoder and ``share`` times the restorer.

    The restorer sees each low-res frame with the decoder's output for it, and enlarges by 4; for other scales its
    pictures are resized. It is not used for outputs with fewer than four times the input's pixels. It costs many times
    what the decoder does, so it runs on key frames only, and its pictures are propagated along the motion to the
    others. On frames half way from a key frame to the end of its group it also repairs the parts that motion has lost,
    and the repairs are propagated too. Where confidence is still low, the result fades to the decoder's. All of this
    happens in :meth:`finish`, once per segment, rather than in :meth:`decode`, to need as few key frames as possible;
    training sees the decoder alone.

    Args:
        latent_channels: components of the basis.
        decoder_channels, decoder_blocks: of the decoder, as in :class:`~ldm_video.models.codec.VideoCodec`.
        restorer_channels, restorer_blocks: of the restorer, see
            :class:`~ldm_video.models.dense_restorer.DenseRestorer`.
        share: weight of the restorer's pictures in the blend.
        every: maximum number of frames per key frame; 1 restores every frame.
        colour_shift: see :class:`~ldm_video.models.codec.Codec`.
    """

    finishes = True

    def __init__(
        self,
        latent_channels: int,
        decoder_channels: tuple[int, int, int, int],
        decoder_blocks: tuple[int, int, int],
        restorer_channels: tuple[int, int],
        restorer_blocks: int,
        share: float = 0.45,
        every: int = 1,
        colour_shift: float = 0.0,
    ) -> None:
        decoder = EvidenceDecoder(latent_channels, decoder_channels, decoder_blocks)
        config = {
            "latent_channels": latent_channels,
            "decoder_channels": list(decoder_channels),
            "decoder_blocks": list(decoder_blocks),
            "restorer_channels": list(restorer_channels),
            "restorer_blocks": restorer_blocks,
            "share": share,
            "every": every,
            "colour_shift": colour_shift,
        }
        super().__init__(latent_channels, decoder, config)
        self.restorer = DenseRestorer(restorer_channels, restorer_blocks).requires_grad_(False)
        self.share, self.every, self.colour_shift = share, every, colour_shift

    def alone(self) -> VideoCodec:
        """Return the decoder without the restorer, as a codec with the same weights."""
        kept = ("latent_channels", "decoder_channels", "decoder_blocks", "colour_shift")
        codec = VideoCodec(**{name: self.config[name] for name in kept})
        codec.decoder.load_state_dict(self.decoder.state_dict())
        codec.latent_std.copy_(self.latent_std)
        return codec

    def finish(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """Blend the restorer's pictures into the decoder's ``b t 3 H W``; same shape."""
        area, low_area = (x.shape[-2] * x.shape[-1] for x in (evidence.guess, evidence.lowres))
        if area < _MIN_AREA_RATIO * low_area:
            return pixels
        finished = pixels.clone()
        for clip in range(len(pixels)):
            clip_evidence = evidence.map(itemgetter(slice(clip, clip + 1)))
            for t, (picture, confidence) in enumerate(self._propagated(pixels[clip], clip_evidence)):  # 3 H W, H W
                mask = _restorer_mask(clip_evidence.crop(slice(t, t + 1), _ALL, _ALL))[0, 0]  # 1 H W
                own = pixels[clip, t]
                finished[clip, t].addcmul_(self.share * mask * confidence, picture.to(own) - own)
        return finished

    def _propagated(self, own: Tensor, evidence: Evidence) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each frame the restorer's picture ``3 H W`` and its confidence ``H W``.

        ``own``: the decoder's pictures ``t 3 H W``.
        """
        lowres = evidence.lowres[0]
        keys = key_frames(len(own), self.every if can_align(lowres, self.every - 1) else 1)
        restored = self.restored(own[None, keys], evidence.map(lambda x: x[:, keys]))[0]  # k 3 H W
        if len(keys) == len(own):
            return ((picture, torch.ones_like(picture[0])) for picture in restored)
        hidden, masked = (
            lay_on_grid(x, size_of(lowres))  # t 1 h w
            for x in (evidence.hole[0], (evidence.hole + evidence.known)[0].clamp(max=1))
        )
        clip = AlignedClip(lowres, hidden)
        repairs, between = {}, frames_between(len(own), keys)
        for t, confidence in zip(between, sureness(clip, between, keys), strict=True):
            confidence = np.maximum(confidence, masked[t, 0].float().cpu().numpy())  # h w
            if boxes := boxes_below(confidence, _BLOCK, _REPAIR_BELOW, _MAX_REPAIRED):
                repairs[t] = self._repair(own[t], lowres[t], boxes)
        return carry(clip, dict(zip(keys, restored, strict=True)), repairs)

    def _repair(self, own: Tensor, lowres: Tensor, boxes: Sequence[Box]) -> Repair:
        """Restore parts of one frame.

        Args:
            own: the decoder's picture ``3 H W``.
            lowres: ``3 h w``.
            boxes: the parts, on the low-res grid.
        """
        low_size, size = size_of(lowres), size_of(own)
        draft = _on_restorers_grid(own[None], low_size)  # 1 3 4h 4w
        picture, shown = draft.clone(), torch.zeros(1, 1, *low_size, device=own.device)
        for box in boxes:
            context, kept = box.grown(2 * _REPAIR_MARGIN, low_size), box.grown(_REPAIR_MARGIN, low_size)
            part = self._enlarged(lowres[None, :, *context.slices()], draft[..., *context.slices(ENLARGES)])
            inner = Box(
                kept.top - context.top, kept.bottom - context.top, kept.left - context.left, kept.right - context.left
            )
            picture[..., *kept.slices(ENLARGES)] = part[..., *inner.slices(ENLARGES)]
            shown[..., *box.slices()] = 1
        shown = F.avg_pool2d(shown, _REPAIR_MARGIN + 1, stride=1, padding=_REPAIR_MARGIN // 2, count_include_pad=False)
        shown = F.interpolate(shown, size, mode="bilinear")[0, 0]  # H W
        return Repair(resize(picture, size)[0], shown)

    def restored(self, own: Tensor, evidence: Evidence) -> Tensor:
        """Return the restorer's pictures, given the decoder's ``b t 3 H W``: same shape, in [-1, 1]."""
        lowres, drafts = fold_time(evidence.lowres), fold_time(own)  # (b t) 3 h w, (b t) 3 H W
        low_size = size_of(lowres)
        # Frames take so much memory that they are processed one by one, except in training, which keeps it all anyway.
        at_once = len(drafts) if torch.is_grad_enabled() else 1
        whole = torch.cat(
            [
                resize(self._enlarged(low, _on_restorers_grid(draft, low_size)), evidence.size)
                for low, draft in zip(lowres.split(at_once), drafts.split(at_once), strict=True)
            ]
        )  # (b t) 3 H W
        return unfold_time(whole, own.shape[1])

    def _enlarged(self, lowres: Tensor, own: Tensor) -> Tensor:
        """``n 3 h w`` and the decoder's pictures ``n 3 4h 4w`` -> ``n 3 4h 4w``, in [-1, 1]."""
        return self.restorer(lowres.float(), own).clamp(-1, 1)


def _on_restorers_grid(frames: Tensor, low_size: tuple[int, int]) -> Tensor:
    """``n 3 . .`` -> ``n 3 4h 4w``, float32."""
    height, width = low_size
    return resize(frames.float(), (height * ENLARGES, width * ENLARGES))


def _restorer_mask(evidence: Evidence) -> Tensor:
    """Return ``b t 1 H W``: 1 where only low-res frames are given, fading to 0 at holes and known pixels."""
    special = fold_time((evidence.hole + evidence.known).clamp(max=1))  # (b t) 1 H W
    if not bool(special.any()):
        return unfold_time(1 - special, evidence.guess.shape[1])
    grown = F.max_pool2d(special, 2 * _MASK_MARGIN + 1, stride=1, padding=_MASK_MARGIN)
    faded = F.avg_pool2d(grown, _MASK_MARGIN + 1, stride=1, padding=_MASK_MARGIN // 2, count_include_pad=False)
    return unfold_time(1 - torch.maximum(faded, special), evidence.guess.shape[1])
