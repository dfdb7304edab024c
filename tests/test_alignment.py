"""Alignment: what comes out depends on the pictures alone, not on threads, cores or what was searched before."""

from __future__ import annotations

import importlib

import cv2
import numpy as np
import pytest
import torch

from eval.metrics import flow
from ldm_video.motion import search
from ldm_video.motion.alignment import AlignedClip, Neighbour
from ldm_video.motion.search import fine_flow
from tests.motion_support import FRAMES, noisy, nothing, scene


def told(threads: int, monkeypatch: pytest.MonkeyPatch) -> list[list[Neighbour]]:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    clip = noisy(scene())
    return list(AlignedClip(clip, nothing(clip)).neighbours(3))


def test_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = told(1, monkeypatch), told(5, monkeypatch)
    assert [[n.frame for n in neighbours] for neighbours in alone] == [
        [other for other in range(FRAMES) if 0 < abs(other - t) <= 3] for t in range(FRAMES)
    ]
    for before, after in zip(alone, together, strict=True):
        for one, two in zip(before, after, strict=True):
            assert one.frame == two.frame
            for part in ("motion", "aligned", "weight"):
                np.testing.assert_array_equal(getattr(one, part), getattr(two, part))


def test_the_order_in_which_frames_are_looked_at_does_not_matter() -> None:
    clip = noisy(scene())
    wanted = [(0, [3]), (2, [3, 0]), (4, [1])]
    forwards = {t: n for (t, _), n in zip(wanted, AlignedClip(clip, nothing(clip)).look(wanted), strict=True)}
    backwards = wanted[::-1]
    for (t, _), neighbours in zip(backwards, AlignedClip(clip, nothing(clip)).look(backwards), strict=True):
        for one, two in zip(neighbours, forwards[t], strict=True):
            np.testing.assert_array_equal(one.motion, two.motion)


def test_a_search_forgets_where_the_one_before_began() -> None:
    """OpenCV's own object does not."""
    frames = [frame.permute(1, 2, 0).numpy() for frame in noisy(scene())]
    first, second, third = (
        cv2.cvtColor(((f + 1) * 127.5).clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2GRAY) for f in frames[:3]
    )
    kept = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    kept.setFinestScale(0)
    fresh, begin = fine_flow(first, second), 2 * fine_flow(second, third)
    np.testing.assert_array_equal(fine_flow(first, third, begin), kept.calc(first, third, begin))
    np.testing.assert_array_equal(fine_flow(first, second), fresh)
    assert not np.array_equal(kept.calc(first, second, None), fresh)  # what this test is for


def test_motion_on_a_finer_grid_is_as_much_longer_as_its_axis_is_finer() -> None:
    motion = np.broadcast_to(np.array([1, -2], np.float32), (6, 5, 2))
    neighbour = Neighbour(0, motion, np.zeros((6, 5, 3), np.float32), np.full((6, 5), 0.5, np.float32))
    fine, weight = neighbour.on_grid((12, 25), torch.device("cpu"))
    torch.testing.assert_close(fine, torch.tensor([5.0, -4.0]).view(2, 1, 1).expand(2, 12, 25))
    torch.testing.assert_close(weight, torch.full((12, 25), 0.5))


def test_cores_do_not_matter() -> None:
    """Neither to the product's search nor to the warp errors'."""
    first, second = (np.random.default_rng(seed).random((96, 128, 3), np.float32) for seed in (0, 1))
    levels = [(x[..., 0] * 255).astype(np.uint8) for x in (first, second)]
    found = []
    try:
        for cores in (1, 4):
            cv2.setNumThreads(cores)
            importlib.reload(search)
            found.append(search.fine_flow(*levels))
            cv2.setNumThreads(cores)
            importlib.reload(flow)
            found.append(flow.DisFlow()(first, second))
    finally:
        cv2.setNumThreads(1)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])
