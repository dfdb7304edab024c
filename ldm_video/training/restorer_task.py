"""Train the restorer of a paired codec, which improves the decoder's output on selected frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ldm_video.core.checks import number
from ldm_video.core.errors import UserError
from ldm_video.core.evidence import Evidence
from ldm_video.models.codec import BasisCodec
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.training.batches import batch_evidence
from ldm_video.training.losses import PixelLoss, psnr
from ldm_video.training.schedule import Pace
from ldm_video.training.stage import MakeOptimizer, Stage


class RestorerTask(Stage):
    """Batch -> output of the frozen decoder and of the restorer -> blend of both -> loss.

    A conditional critic also gets the decoder's output.

    The blend is ``share`` times the restorer's output plus ``1 - share`` times the decoder's. In training, the share is
    drawn uniformly from ``least_share`` to 1 for each clip, so the restorer learns to supply what the decoder lacks,
    and the best share can still be tuned afterwards. Clips should have no holes, which only the decoder fills.

    Args:
        codec: the codec whose restorer is trained.
        pixel_loss: L1, perceptual and motion terms.
        least_share: smallest share, from 0 to 1.
        last_blocks: number of final blocks of the restorer's trunk to train, along with the layers after them; None
            trains all of it.
        critic_lead: number of steps at the start in which only the critic of ``pixel_loss`` is trained.
        critic_rate: factor on the critic's learning rate.
        optimizer, warmup, seed: see :class:`~ldm_video.training.stage.Stage`.

    Raises ``UserError`` for a codec without a restorer and for a value out of range.
    """

    def __init__(
        self,
        codec: BasisCodec,
        pixel_loss: PixelLoss,
        optimizer: MakeOptimizer,
        least_share: float = 0.4,
        warmup: int = 100,
        seed: int = 0,
        last_blocks: int | None = None,
        critic_lead: int = 0,
        critic_rate: float = 1.0,
    ) -> None:
        super().__init__(optimizer, warmup, seed)
        if not isinstance(codec, PairedCodec):
            raise UserError("this model has no restorer to train; `python -m ldm_video.convert add-restorer` adds one")
        codec.requires_grad_(False)
        for part in codec.restorer.trained_parts(last_blocks):
            part.requires_grad_(True)
        try:
            self._paces = Pace(start=critic_lead), Pace(scale=critic_rate)
        except ValueError as error:
            raise UserError(f"task.critic_lead or task.critic_rate cannot be used: {error}") from error
        self.codec = codec
        self.pixel_loss = pixel_loss
        self.least_share = number("task.least_share", least_share, 0, 1)

    def paces(self) -> list[tuple[str, Iterable[nn.Parameter], Pace]]:
        own, critic = self._paces
        return [("restorer", self.codec.parameters(), own), ("critic", self.pixel_loss.parameters(), critic)]

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        draws = self.draws(batch, index)
        evidence = batch_evidence(batch, 0.0, draws, colour_shift=self.codec.colour_shift)
        own = self._own(batch["hr"], evidence)
        restored = self.codec.restored(own, evidence)  # b t 3 H W
        share = torch.lerp(torch.ones(()), torch.tensor(self.least_share), draws.rand(1, 1, 1, 1))  # b 1 1 1 1
        shown = torch.lerp(own, restored.to(own), share.to(own))
        terms = self.pixel_loss(shown, batch["hr"], draws.step, own)
        return self.total(terms, batch)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("val/psnr", psnr(self.restore(batch).clamp(-1, 1), batch["hr"]), prog_bar=True, sync_dist=True)

    @torch.no_grad()
    def restore(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Restore as at inference: zero latents, the restorer on few frames, its contribution propagated to the others.

        Returns ``b t 3 H W``.
        """
        evidence = batch_evidence(batch, 0.0, self.draws(batch, 0, "restore"), colour_shift=self.codec.colour_shift)
        return self.codec.finish(self._own(batch["hr"], evidence), evidence)

    @torch.no_grad()
    def _own(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """Decode zero latents: ``b t 3 H W``, in the dtype of ``pixels`` even under autocast."""
        b, t, _, height, width = pixels.shape
        factor = self.codec.factor
        nothing = pixels.new_zeros(b, t, self.codec.latent_channels, height // factor, width // factor)
        return self.codec.decode(nothing, evidence).to(pixels)
