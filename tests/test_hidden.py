"""What the hole hides never reaches the output, whatever looks over the hole's rim on the way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ldm_video.pipeline.restore import Restorer, RestoreSettings
from tests.model_support import box_hole, rand_pixels, randn, small_video_model

FRAMES = 6
PAINTS = ((-1.0, -1.0, -1.0), (1.0, -1.0, -1.0))


@pytest.mark.parametrize(
    ("settings", "colour_shift"),
    [
        (RestoreSettings(propagate="off"), -0.5),
        (RestoreSettings(propagate="off", average=2), 0.0),
        (RestoreSettings(propagate="on"), 0.0),
        (RestoreSettings(propagate="on", fill="patches", average=2, steady=2, fidelity=0.4), -0.5),
    ],
    ids=["colour moves", "averaged", "carried over", "all"],
)
def test_no_filter_brings_back_what_the_hole_hides(settings: RestoreSettings, colour_shift: float) -> None:
    """A still box, painted in one colour or another, over a noisy picture that moves by fractions of a pixel."""
    model = small_video_model()
    model.codec.colour_shift = colour_shift
    world = F.interpolate(rand_pixels(1, 3, 12, 20), scale_factor=8, mode="bicubic")[0]  # 3 96 160
    views = torch.stack([0.6 * world[:, t : t + 64, 5 * t : 5 * t + 96] for t in range(FRAMES)])  # t 3 64 96
    frames = F.avg_pool2d(views, 2)  # t 3 32 48
    frames = (frames + 0.1 * randn(*frames.shape)).clamp(-1, 1)
    hole = box_hole(FRAMES, (128, 192), slice(48, 80), slice(72, 108))[0]  # t 1 H W
    outputs = []
    for paint in PAINTS:
        painted = frames.clone()
        painted[..., 12:20, 18:27] = torch.tensor(paint)[:, None, None]
        outputs.append(Restorer(model, settings)(painted, hole, list(range(FRAMES))))
    assert torch.equal(*outputs)
