"""A restorer: a network that redraws low-res frames at four times the size with the dense blocks of ESRGAN.

It is Real-ESRGAN x4plus (arXiv:2107.10833), whose published weights can initialise it
(:mod:`~ldm_video.models.real_esrgan`), plus one convolution through which it sees another network's output for the same
frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.core.evidence import resize
from ldm_video.core.tensors import frames_at_once, size_of
from ldm_video.models.dense_blocks import SLOPE, DenseTrunk

ENLARGES = 4


class DenseRestorer(nn.Module):
    """Frames and a full-size draft of them -> pictures. Frames are independent.

    No normalisation layer: the output does not depend on far-away pixels, so that tiles agree where they overlap, and
    colours do not shift.

    Args:
        channels: widths on the low-res grid and at full size.
        blocks: residual-in-residual dense blocks of the trunk.
    """

    def __init__(self, channels: tuple[int, int], blocks: int) -> None:
        super().__init__()
        wide, fine = channels
        self.trunk = DenseTrunk(wide, blocks)
        self.draft = nn.Conv2d(3 * ENLARGES**2, wide, 3, padding=1, bias=False)
        self.up2 = nn.ConvTranspose2d(wide, wide, 4, stride=2, padding=1)
        self.up1 = nn.ConvTranspose2d(wide, fine, 4, stride=2, padding=1)
        self.refine = nn.Conv2d(fine, fine, 3, padding=1)
        self.exit = nn.Conv2d(fine, 3, 3, padding=1)
        nn.init.zeros_(self.draft.weight)  # no effect until trained: the published network has no draft input

    def trained_parts(self, last_blocks: int | None = None) -> list[nn.Module]:
        """Return the modules to train: all, or only the last ``last_blocks`` blocks of the trunk and what follows them.

        Raises ``UserError`` if the trunk has fewer blocks.
        """
        after = [self.up2, self.up1, self.refine, self.exit]
        if last_blocks is None:
            return [self.draft, self.trunk, *after]
        blocks = list(self.trunk.blocks)
        if not 0 <= last_blocks <= len(blocks):
            raise UserError(f"the restorer has {len(blocks)} blocks, of which the last {last_blocks} cannot be trained")
        return [*blocks[len(blocks) - last_blocks :], self.trunk.last, *after]

    def forward(self, lowres: Tensor, draft: Tensor) -> Tensor:
        """``n 3 h w`` and draft ``n 3 4h 4w``, roughly in [-1, 1], float32 -> ``n 3 4h 4w``, float32, not clipped."""
        residual = draft - resize(lowres, size_of(draft))  # n 3 4h 4w
        x = self.trunk.enter(lowres.to(self.exit.weight))  # n wide h w
        x = x + self.draft(F.pixel_unshuffle(residual, ENLARGES).to(x))
        # A few frames at a time fit into a CPU's cache.
        return torch.cat([self._draw(part) for part in x.split(frames_at_once(draft[None]))]).float()

    def _draw(self, x: Tensor) -> Tensor:
        """``n wide h w -> n 3 4h 4w``."""
        x = F.leaky_relu(self.up2(self.trunk(x)), SLOPE)  # n wide 2h 2w
        x = F.leaky_relu(self.up1(x), SLOPE)  # n fine 4h 4w
        return self.exit(F.leaky_relu(self.refine(x), SLOPE))


def read_former(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Convert the weights below ``prefix`` in the state dict of a whole model from bundle format 1.

    There the restorer was a decoder of latents, although it was never given any.
    """
    left_out = ("latents4.", "mix4.", "replaced")
    kept = {name: value for name, value in state.items() if not name.removeprefix(prefix).startswith(left_out)}
    draft = kept.pop(f"{prefix}evidence4.weight")  # c (5 4 4) 3 3: draft, hole, known
    return {**kept, f"{prefix}draft.weight": draft[:, : 3 * ENLARGES**2].contiguous()}
