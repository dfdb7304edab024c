"""A codec whose pictures are a mixture of its own decoder's and of a large restorer's.

Networks that were trained apart err apart, so a mixture of their pictures is nearer to the truth than either, in PSNR,
LPIPS and DISTS alike (docs/model-log.md): the restorer draws cleaner edges than a small decoder learns, the decoder
keeps to what the low-res frames show.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.carry import carry, key_frames
from ldm_video.core.evidence import Evidence, build_evidence, lay_on_grid, resize
from ldm_video.core.motion_average import can_align
from ldm_video.core.tensors import fold_time, unfold_time
from ldm_video.models.codec import BasisCodec, EvidenceDecoder, VideoCodec
from ldm_video.models.drawing_decoder import DrawingDecoder

_ALL = slice(None)
_ENLARGES = 4  # what the restorer was trained for
_LEAST_AREA = 4  # output pixels for a low-res one, from which on a restorer of low-res frames is asked
_FADE = 8  # output pixels around holes and known pixels that are the decoder's alone, and over which that fades


class PairedCodec(BasisCodec):
    """Of what is neither hole nor known, ``1 - share`` is the decoder's and ``share`` the restorer's.

    The restorer sees low-res frames one by one, and what the decoder made of them, and enlarges by 4; for another
    enlargement its pictures are resized. Below a doubling of both sides it is not asked. It costs many times what the
    decoder does, so it is asked for few frames, and its pictures are carried along the motion to the others, where they
    fade into the decoder's as motion gets unsure: when a segment is finished, not when it is decoded, so that few are
    as few as they can be, and training sees the decoder alone.

    Args:
        latent_channels: components of the basis.
        decoder_channels, decoder_blocks: of the decoder, as in :class:`~ldm_video.models.codec.VideoCodec`.
        restorer_channels, restorer_blocks: of the restorer, as in :class:`~ldm_video.models.codec.DrawingCodec`.
        share: of the restorer's pictures.
        every: the restorer is asked for one of as many frames; 1 asks for each.
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
        }
        super().__init__(latent_channels, decoder, config)
        self.restorer = DrawingDecoder(latent_channels, restorer_channels, restorer_blocks).requires_grad_(False)
        self.share, self.every = share, every

    def alone(self) -> VideoCodec:
        """The decoder without the restorer, with the same weights."""
        kept = ("latent_channels", "decoder_channels", "decoder_blocks")
        codec = VideoCodec(**{name: self.config[name] for name in kept})
        codec.decoder.load_state_dict(self.decoder.state_dict())
        codec.latent_std.copy_(self.latent_std)
        return codec

    def finish(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """The decoder's pixels ``b t 3 H W`` -> with the restorer's share."""
        area, low_area = (x.shape[-2] * x.shape[-1] for x in (evidence.guess, evidence.lowres))
        if area < _LEAST_AREA * low_area:
            return pixels
        finished = pixels.clone()
        for clip in range(len(pixels)):
            seen = evidence.map(itemgetter(slice(clip, clip + 1)))
            for t, (picture, sure) in enumerate(self._carried(pixels[clip], seen)):  # 3 H W, H W
                trust = _trust(seen.crop(slice(t, t + 1), _ALL, _ALL))[0, 0]  # 1 H W
                own = pixels[clip, t]
                finished[clip, t].addcmul_(self.share * trust * sure, picture.to(own) - own)
        return finished

    def _carried(self, own: Tensor, evidence: Evidence) -> Iterator[tuple[Tensor, Tensor]]:
        """The restorer's pictures, given the decoder's ``t 3 H W``: frame after frame ``3 H W``, how sure ``H W``."""
        lowres = evidence.lowres[0]
        keys = key_frames(len(own), self.every if can_align(lowres, self.every - 1) else 1)
        restored = self.restored(own[None, keys], evidence.map(lambda x: x[:, keys]))[0]  # k 3 H W
        if len(keys) == len(own):
            return ((picture, torch.ones_like(picture[0])) for picture in restored)
        hidden = lay_on_grid(evidence.hole[0], (lowres.shape[-2], lowres.shape[-1]))
        return carry(restored, keys, lowres, hidden)

    def restored(self, own: Tensor, evidence: Evidence) -> Tensor:
        """The restorer's pictures alone, given the decoder's ``b t 3 H W``: of the same shape, within [-1, 1]."""
        lowres, drafts = fold_time(evidence.lowres), fold_time(own)  # (b t) 3 h w, (b t) 3 H W
        # Each frame takes so much memory that they go one by one, but for a trainer, which keeps all of it anyway.
        at_once = len(drafts) if torch.is_grad_enabled() else 1
        parts = zip(lowres.split(at_once), drafts.split(at_once), strict=True)
        whole = torch.cat([_resized(self._enlarged(*part), evidence.size) for part in parts])  # (b t) 3 H W
        return unfold_time(whole, own.shape[1])

    def _enlarged(self, lowres: Tensor, own: Tensor) -> Tensor:
        """``n 3 h w`` and the decoder's pictures of them ``n 3 H W`` -> ``n 3 4h 4w``.

        The restorer is shown what the decoder's pictures have beyond the low-res frames. That is nothing to it until it
        has been trained on them: published weights see the low-res frames alone.
        """
        height, width = lowres.shape[-2:]
        right, bottom = width % 2, height % 2  # the restorer's grid takes sides that are even
        even = F.pad(lowres.float(), (0, right, 0, bottom), mode="replicate")[:, None]  # n 1 3 h' w'
        draft = _resized(own.float(), (height * _ENLARGES, width * _ENLARGES))
        draft = F.pad(draft, (0, right * _ENLARGES, 0, bottom * _ENLARGES), mode="replicate")[:, None]  # n 1 3 4h' 4w'
        evidence = build_evidence(even, torch.zeros_like(draft[:, :, :1]))
        grid = (draft.shape[-2] // self.factor, draft.shape[-1] // self.factor)
        nothing = self.restorer.exit.weight.new_zeros(len(even), 1, self.latent_channels, *grid)
        # The restorer adds what it draws to its draft; here that is to be seen and not to be added.
        picture = (self.restorer(nothing, evidence, draft) - draft + evidence.guess)[:, 0]  # n 3 4h' 4w'
        return picture[..., : height * _ENLARGES, : width * _ENLARGES].clamp(-1, 1)


def _resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """``n 3 . .`` -> ``n 3 H W``."""
    return resize(frames[:, None], size)[:, 0]


def _trust(evidence: Evidence) -> Tensor:
    """1 where the low-res frames are all there is, 0 in and around holes and known pixels: ``b t 1 H W``."""
    special = fold_time((evidence.hole + evidence.known).clamp(max=1))  # (b t) 1 H W
    if not bool(special.any()):
        return unfold_time(1 - special, evidence.guess.shape[1])
    grown = F.max_pool2d(special, 2 * _FADE + 1, stride=1, padding=_FADE)
    faded = F.avg_pool2d(grown, _FADE + 1, stride=1, padding=_FADE // 2, count_include_pad=False)
    return unfold_time(1 - torch.maximum(faded, special), evidence.guess.shape[1])
