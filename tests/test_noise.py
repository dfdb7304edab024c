"""Noise depends on the seed and the frame's number alone; shared noise is the asked correlation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_video.diffusion.noise import batch_noise, frame_noise

SHAPE = (3, 4, 5)  # c h w


@given(
    frames=st.lists(st.integers(0, 200), min_size=1, max_size=12),
    seed=st.integers(0, 2**63),
    shared=st.sampled_from([0.0, 0.4]),
)
def test_a_frame_keeps_its_noise_in_any_window(frames: list[int], seed: int, shared: float) -> None:
    together = frame_noise(seed, frames, SHAPE, shared)
    alone = torch.cat([frame_noise(seed, [frame], SHAPE, shared) for frame in frames])
    assert torch.equal(together, alone)


def test_another_process_draws_the_same() -> None:
    code = (
        "from ldm_video.diffusion.noise import frame_noise;"
        "print(frame_noise(7, [3, 90], (3, 4, 5), 0.2).double().sum().item())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(there.stdout) == frame_noise(7, [3, 90], SHAPE, 0.2).double().sum().item()


def test_frames_and_seeds_differ() -> None:
    noise = torch.cat([frame_noise(seed, range(2000), (1, 2, 2)) for seed in (0, 1, 2**40)])
    assert len(torch.unique(noise.flatten(1), dim=0)) == 6000


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.9])
def test_frame_noise_has_unit_variance_and_the_asked_correlation(shared: float) -> None:
    noise = frame_noise(5, range(6), (4, 128, 128), shared).flatten(1)  # t (c h w)
    # 65,536 values: a standard error of 0.004.
    assert torch.allclose(noise.mean(1), torch.zeros(6), atol=0.02)
    expected = torch.full((6, 6), shared).fill_diagonal_(1.0)
    assert torch.allclose(torch.cov(noise), expected, atol=0.02)


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.9])
def test_batch_noise_has_the_same_distribution_and_independent_clips(shared: float) -> None:
    noise = batch_noise((2, 3, 4, 128, 128), torch.Generator().manual_seed(1), shared).flatten(2).flatten(0, 1)
    within = torch.full((3, 3), shared).fill_diagonal_(1.0)
    assert torch.allclose(torch.cov(noise), torch.block_diag(within, within), atol=0.02)


def test_device_type_and_bounds() -> None:
    half = frame_noise(1, [4], SHAPE, dtype=torch.bfloat16)
    assert torch.equal(half, frame_noise(1, [4], SHAPE).bfloat16())
    for shared in (-0.1, 1.0):
        with pytest.raises(ValueError, match="shared"):
            frame_noise(1, [0], SHAPE, shared)
        with pytest.raises(ValueError, match="shared"):
            batch_noise((1, 1, 1, 2, 2), torch.Generator(), shared)


@pytest.mark.gpu
def test_the_device_does_not_change_the_noise() -> None:
    assert torch.equal(frame_noise(1, [4, 9], SHAPE, 0.5, device="cuda").cpu(), frame_noise(1, [4, 9], SHAPE, 0.5))
