"""Check before the first step that clips fit the model and its losses."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from ldm_video.core.errors import UserError
from ldm_video.training.losses import PixelLoss
from ldm_video.training.stage import Stage


def check_size(stage: Stage, size: tuple[int, int], what: str, judged: bool = True) -> None:
    """Raise ``UserError``, naming ``what``, if ``stage`` cannot take clips of ``size`` (height, width).

    ``judged`` says whether the stage's pixel loss is computed on them, too.
    """
    model: Any = getattr(stage, "model", stage)  # some stages have only a codec
    factor, loss = model.codec.factor, getattr(stage, "pixel_loss", None)
    if size[0] % factor or size[1] % factor:
        raise UserError(
            f"{what} has clips of {size[0]}x{size[1]}, not a multiple of {factor} as the model's codec needs; change "
            "data.size"
        )
    if judged and isinstance(loss, PixelLoss):
        loss.check_size(size)


def check_clips(stage: Stage, clips: Dataset[Any], what: str, judged: bool = True) -> None:
    """Call :func:`check_size` for the ``size`` of a dataset, or of each of its ``sets``; skip those without a size."""
    for size in {tuple(part.size) for part in getattr(clips, "sets", [clips]) if hasattr(part, "size")}:
        check_size(stage, size, what, judged)
