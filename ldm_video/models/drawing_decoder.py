"""A decoder that draws anew what the low-res frames show, at full size; latents and known pixels are added to it.

The work is done on the f4 grid, where low-res frames lie at x4, by the dense blocks of ESRGAN (arXiv:1809.00219), and
enlarged at the end. So trunk and enlargement may begin with published weights (`ldm_video/models/real_esrgan.py`): a
restorer of pictures takes far more pictures to learn than the evidence and the frames that are added here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.core.evidence import Evidence, resize, show_on_grid, space_to_depth
from ldm_video.core.tensors import fold_time, frames_at_once, unfold_time
from ldm_video.models.dense_blocks import SLOPE, DenseTrunk
from ldm_video.models.temporal import TemporalBlock, TemporalConfig

_GRID = 4  # output pixels to a side of a cell of the trunk's grid
_SIGHT = 3 + 1 + 1  # what the draft has beyond that grid, hole, known


class DrawingDecoder(nn.Module):
    """Latents, their draft and the evidence -> pixels.

    ``pixels = draft + drawn - replaced x shown``, where ``shown`` is what the f4 grid shows of the evidence, enlarged.
    A new decoder returns the draft: it draws nothing and replaces nothing. Published weights draw the whole picture
    (``replaced`` = 1), to which is added what latents and known pixels have beyond the grid.

    No normalisation layer: the output does not depend on far-away pixels, so that tiles agree where they overlap,
    and colours are not shifted.

    Args:
        latent_channels: of latents on the f8 grid.
        channels: widths on the f4 and f2 grids, and at full size.
        blocks: of the trunk.
    """

    def __init__(self, latent_channels: int, channels: tuple[int, int], blocks: int) -> None:
        super().__init__()
        wide, fine = channels
        # Without biases: where there is nothing to see, nothing need be computed.
        self.latents4 = nn.Conv2d(latent_channels, wide * 4, 3, padding=1, bias=False)
        self.evidence4 = nn.Conv2d(_SIGHT * _GRID**2, wide, 3, padding=1, bias=False)
        self.trunk = DenseTrunk(wide, blocks)
        self.mix4 = TemporalBlock(wide, TemporalConfig(), attention=False)
        self.up2 = nn.ConvTranspose2d(wide, wide, 4, stride=2, padding=1)
        self.up1 = nn.ConvTranspose2d(wide, fine, 4, stride=2, padding=1)
        self.refine = nn.Conv2d(fine, fine, 3, padding=1)
        self.exit = nn.Conv2d(fine, 3, 3, padding=1)
        self.replaced = nn.Parameter(torch.zeros(3, 1, 1))
        for conv in (self.latents4, self.evidence4, self.exit):
            for parameter in conv.parameters():
                nn.init.zeros_(parameter)

    def drawing_parts(self, last_blocks: int | None = None) -> list[nn.Module]:
        """The layers that a frame without latents goes through, which no other frame touches.

        ``last_blocks`` leaves out all before as many of the trunk's last blocks. ``UserError`` if it has not so many.
        """
        after = [self.up2, self.up1, self.refine, self.exit]
        if last_blocks is None:
            return [self.evidence4, self.trunk, *after]
        blocks = list(self.trunk.blocks)
        if not 0 <= last_blocks <= len(blocks):
            raise UserError(f"the restorer has {len(blocks)} blocks, of which the last {last_blocks} cannot be trained")
        return [*blocks[len(blocks) - last_blocks :], self.trunk.last, *after]

    def forward(self, latents: Tensor, evidence: Evidence, draft: Tensor) -> Tensor:
        """``b t c h w``, evidence and draft ``b t 3 H W`` of size ``(8 h) x (8 w)`` -> ``b t 3 (8 h) (8 w)``."""
        frames = latents.shape[1]
        rgb = show_on_grid(evidence, (evidence.size[0] // _GRID, evidence.size[1] // _GRID))  # b t 3 2h 2w
        shown = resize(rgb, evidence.size)  # b t 3 H W
        x = self.trunk.enter(fold_time(rgb).to(latents))  # (b t) wide 2h 2w
        x = x + F.pixel_shuffle(self.latents4(fold_time(latents)), 2)
        sight = torch.cat([draft - shown, evidence.hole, evidence.known], dim=2)  # b t 5 H W
        if torch.is_grad_enabled() or bool(sight.any()):
            x = x + self.evidence4(fold_time(space_to_depth(sight, _GRID)).to(x))
        x = self.mix4(x, frames)
        # From here on no frame needs another one: what a few of them take stays in a CPU's cache.
        drawn = torch.cat([self._draw(part) for part in x.split(frames_at_once(draft))])  # (b t) 3 8h 8w
        # In the evidence's type: in bfloat16 the sum would be rounded to visible steps.
        return draft + unfold_time(drawn, frames).to(draft) - self.replaced.to(draft) * shown  # b t 3 8h 8w

    def _draw(self, x: Tensor) -> Tensor:
        """``n wide 2h 2w -> n 3 8h 8w``."""
        x = F.leaky_relu(self.up2(self.trunk(x)), SLOPE)  # n wide 4h 4w
        x = F.leaky_relu(self.up1(x), SLOPE)  # n fine 8h 8w
        return self.exit(F.leaky_relu(self.refine(x), SLOPE))
