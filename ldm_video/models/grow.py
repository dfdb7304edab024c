"""Initialise a larger decoder from a smaller, trained one, with the same output at first.

As in Net2Net (arXiv:1511.05641), but new channels are initially unread rather than duplicates: the weights that compute
them are random and the weights that read them are zero, so both can be trained from the first step on. New residual
blocks start as the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.models.codec import VideoCodec

# Layers whose output is added to existing features: their new output channels start at zero.
_RESIDUAL_OUTPUTS = (".conv2.", "evidence2.")


@torch.no_grad()
def grow(large: VideoCodec, small: VideoCodec) -> None:
    """Copy what ``small`` has learned into the new ``large``; both then compute the same, up to rounding.

    Raises ``UserError`` if ``large`` has different latents, fewer channels or blocks, or more channels on the f8 or f4
    grid, where temporal layers normalise over all channels.
    """
    if large.latent_channels != small.latent_channels:
        raise UserError(f"the new decoder has {large.latent_channels} latent channels, it had {small.latent_channels}")
    new, old = large.state_dict(), small.state_dict()
    if missing := sorted(old.keys() - new.keys()):
        raise UserError(f"the new decoder is smaller: it has no {missing[0]}; give it at least as many blocks")
    for name, weights in old.items():
        new[name] = _grown(name, weights, new[name])
    large.load_state_dict(new)
    large.colour_shift = large.config["colour_shift"] = small.colour_shift


def _grown(name: str, old: Tensor, new: Tensor) -> Tensor:
    """Return ``new`` ``O I ...`` with ``old`` ``o i ...`` in its corner; no axis of ``new`` may be shorter."""
    if old.shape == new.shape:
        return old
    if any(a > b for a, b in zip(old.shape, new.shape, strict=True)):
        raise UserError(f"the new decoder is smaller: {name} has the shape {list(new.shape)}, it had {list(old.shape)}")
    if "norm" in name:
        raise UserError(f"{name} normalises over all channels: the f8 and f4 grids can become deeper, not wider")
    grown = new.clone()
    if grown.dim() == 1:
        grown.zero_()
    else:
        grown[:, old.shape[1] :] = 0
    if any(part in name for part in _RESIDUAL_OUTPUTS):
        grown[old.shape[0] :] = 0
    grown[tuple(slice(side) for side in old.shape)] = old
    return grown
