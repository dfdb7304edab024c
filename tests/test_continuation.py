"""A segment that is told how it begins: those frames come back as they are, and the rest follows them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ldm_video.pipeline.restore import Restorer, RestoreSettings
from tests.model_support import box_hole, rand_pixels, small_video_model

SETTINGS = RestoreSettings(steps=2, seed=3, window=6, overlap=2, tile_overlap=16, feather=4)
LOW = (8, 12)
FRAMES, BEFORE = 8, 3


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_known_frames_come_back_and_lead_the_rest(scale: int, tile: tuple[int, int] | None) -> None:
    low = (LOW[0] * 4 // scale, LOW[1] * 4 // scale)
    size = (LOW[0] * 4, LOW[1] * 4)
    restorer = Restorer(small_video_model(), replace(SETTINGS, tile=tile))
    frames = rand_pixels(FRAMES, 3, *low) * 0.6
    hole = box_hole(FRAMES, size, slice(8, 24), slice(0, 20))[0]
    indices = list(range(FRAMES))
    plain = restorer(frames, hole, indices)
    results = []
    for seed in (1, 2):
        before = rand_pixels(BEFORE, 3, *size, seed=seed)
        output = restorer(frames, hole, indices, before=before)
        assert torch.equal(output[:BEFORE], before)  # in the hole too
        results.append(output[BEFORE:])
    assert (results[0] - results[1]).abs().max() > 1e-3
    assert (results[0] - plain[BEFORE:]).abs().max() > 1e-3
    if scale == 1:  # what the clip itself knows stays
        outside = torch.nn.functional.max_pool2d(hole, 13, 1, 6) == 0
        torch.testing.assert_close(
            results[0][outside[BEFORE:].expand(-1, 3, -1, -1)], frames[BEFORE:][outside[BEFORE:].expand(-1, 3, -1, -1)]
        )
