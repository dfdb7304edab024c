"""The samplers against the closed-form flow map of Gaussian data.

For ``x_0 ~ N(m, s^2)`` the best denoiser is known, and so is where the sampling ODE carries a given noise. A solver of
order p must come closer to it by ``2^p`` each time the number of steps doubles.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, SchedulerMixin
from torch import Tensor

from ldm_video.diffusion.process import Process
from ldm_video.diffusion.sampler import DETERMINISTIC, STOCHASTIC, make_scheduler, sample, sampling_timesteps
from tests.sampler_support import MEAN, SHAPE, errors, make, oracle


def order(counts: Sequence[int], errors: Sequence[float]) -> float:
    """Slope of log error against log of the number of steps."""
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])


def last_level(scheduler: SchedulerMixin) -> float:
    """The last level above zero of a scheduler that keeps it when steps are added."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(10)
    return float(fresh.sigmas[-2])


# On Karras's levels the noise falls smoothly from the table's last entry to its first, at any number of steps.
KARRAS = {"use_karras_sigmas": True, "timestep_spacing": "linspace"}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("name", "counts", "expected", "tolerance"),
    [
        ("EulerDiscreteScheduler", (20, 40, 80), 1.0, 0.05),
        ("HeunDiscreteScheduler", (20, 40, 80), 2.0, 0.25),
        ("DPMSolverMultistepScheduler", (10, 20, 40, 80), 2.0, 0.25),
    ],
)
def test_solvers_converge_at_their_order(
    name: str, counts: tuple[int, ...], expected: float, tolerance: float, prediction: str
) -> None:
    scheduler = make(name, prediction_type=prediction, **KARRAS)
    assert order(counts, errors(scheduler, counts, last_level(scheduler))) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_converges_at_order_one(shift: float) -> None:
    scheduler = make("FlowMatchEulerDiscreteScheduler", shift=shift)
    counts = (10, 20, 40, 80)
    assert order(counts, errors(scheduler, counts, last_level(scheduler))) == pytest.approx(1.0, abs=0.05)


def test_flow_heun_converges_at_order_two() -> None:
    scheduler = make("FlowMatchHeunDiscreteScheduler")
    counts = (20, 40, 80, 160)
    assert order(counts, errors(scheduler, counts, last_level(scheduler))) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("prediction", "zero_terminal_snr"),
    [("epsilon", False), ("v_prediction", False), ("sample", False), ("v_prediction", True), ("sample", True)],
)
def test_ddim_converges_down_to_the_data(prediction: str, zero_terminal_snr: bool) -> None:
    scheduler = make("DDIMScheduler", prediction_type=prediction, rescale_betas_zero_snr=zero_terminal_snr)
    counts = (50, 100, 200)
    found = errors(scheduler, counts)
    # A little under 1: near the data sigma rises with the square root of the timestep, not smoothly.
    assert 0.8 < order(counts, found) < 1.1
    assert found[-1] < 0.01


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_every_deterministic_scheduler_comes_close(name: str) -> None:
    assert errors(make(name), [100])[0] < 0.04


@pytest.mark.parametrize(
    "scheduler",
    [
        make("DDPMScheduler"),
        make("EulerAncestralDiscreteScheduler"),
        make("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
        make("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True),
        LCMScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_noise_is_never_drawn_from_nowhere(scheduler: SchedulerMixin) -> None:
    with pytest.raises(ValueError, match="adds noise at each step"):
        sample(oracle(scheduler), scheduler, torch.randn(SHAPE), 4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_one_flow_step_goes_from_noise_to_data(shift: float) -> None:
    scheduler = make("FlowMatchEulerDiscreteScheduler", shift=shift)
    seen = []

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        seen.append(timestep.item())
        return oracle(scheduler)(x, timestep)

    # At pure noise the best estimate is the mean, whatever the noise.
    assert torch.allclose(sample(denoise, scheduler, torch.randn(SHAPE), 1), torch.tensor(MEAN), atol=1e-6)
    assert seen == [1000.0]


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_scheduler_is_not_changed(name: str) -> None:
    scheduler, noise = make(name), torch.randn(SHAPE)
    before = scheduler.timesteps.clone()
    first = sample(oracle(scheduler), scheduler, noise, 7)
    assert torch.equal(scheduler.timesteps, before)
    assert torch.equal(first, sample(oracle(scheduler), scheduler, noise, 7))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_start_enters_at_its_noise_level(name: str) -> None:
    scheduler = make(name)
    process = Process.from_scheduler(scheduler)
    noise, start = torch.randn(SHAPE), torch.randn(SHAPE)
    seen: list[tuple[Tensor, Tensor]] = []

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        seen.append((x, timestep))
        return oracle(scheduler)(x, timestep)

    sample(denoise, scheduler, noise, 10, start=start, strength=0.4)
    two_stages = name in ("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
    assert len(seen) == (7 if two_stages else 4)
    first, timestep = seen[0]
    assert torch.allclose(first, process.noisy(start, noise, timestep.float()), atol=2e-4)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_sampling_timesteps_are_those_that_are_visited(name: str) -> None:
    """And the process, given them, knows what noise level the sampler is at."""
    scheduler = make(name)
    process = Process.from_scheduler(scheduler)
    seen = []

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        seen.append(timestep)
        return oracle(scheduler)(x, timestep)

    sample(denoise, scheduler, torch.randn(SHAPE), 4)
    timesteps = sampling_timesteps(scheduler, 4)
    assert timesteps.tolist() == torch.unique_consecutive(torch.stack(seen)).tolist()
    assert len(timesteps) == 4
    alphas = [process.coefficients(timestep)[0].item() for timestep in timesteps]
    assert alphas == sorted(alphas) and alphas[0] == pytest.approx(process.alphas[-1].item(), abs=1e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name.startswith(("UniPC", "DPMSolver"))])
def test_the_process_knows_the_level_of_a_flow_in_every_solver(name: str, shift: float) -> None:
    """These round a flow's timesteps to whole numbers; its level is a thousandth of them, as their sigmas say."""
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    scheduler = make_scheduler(name, **options)
    theirs = copy.deepcopy(scheduler)
    theirs.set_timesteps(4)
    timesteps = sampling_timesteps(scheduler, 4)
    assert timesteps.tolist() == theirs.timesteps.tolist()
    levels = Process.from_scheduler(scheduler).coefficients(timesteps)[1]
    torch.testing.assert_close(levels, theirs.sigmas[:-1], atol=1.5e-3, rtol=0)


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC + STOCHASTIC if not name.startswith("FlowMatch")])
@pytest.mark.parametrize("steps", [60, 61, 62, 103, 121, 122])
def test_no_number_of_steps_goes_beyond_the_data(name: str, steps: int) -> None:
    timesteps = sampling_timesteps(make(name), steps)
    assert len(timesteps) == steps
    assert timesteps.min() >= 0


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if not name.startswith("FlowMatch")])
def test_a_step_more_or_less_makes_little_difference(name: str) -> None:
    scheduler, noise, calls = make(name), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)), []
    results = [
        sample(oracle(scheduler), scheduler, noise, n, callback=lambda done, total, x: calls.append((done, total)))
        for n in (60, 61, 62)
    ]
    torch.testing.assert_close(results[1], (results[0] + results[2]) / 2, atol=0.012, rtol=0)
    totals = [2 * n - 1 if "Heun" in name else n for n in (60, 61, 62)]
    assert [call for call in calls if call[0] == call[1]] == [(n, n) for n in totals]
    half = sample(oracle(scheduler), scheduler, noise, 61, start=noise, strength=0.5)
    assert half.isfinite().all()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5])
def test_bad_strength_is_refused(strength: float) -> None:
    scheduler = make("DDIMScheduler")
    with pytest.raises(ValueError, match="strength"):
        sample(oracle(scheduler), scheduler, torch.randn(SHAPE), 4, strength=strength)


def test_half_precision_in_half_precision_out() -> None:
    scheduler, calls = make("FlowMatchEulerDiscreteScheduler"), []

    def denoise(x: Tensor, timestep: Tensor) -> Tensor:
        assert x.dtype == torch.bfloat16
        return oracle(scheduler)(x, timestep)

    noise = torch.randn(SHAPE)
    half = sample(
        denoise, scheduler, noise.bfloat16(), 5, callback=lambda done, total, x: calls.append((done, total, x.dtype))
    )
    assert half.dtype == torch.bfloat16
    assert calls == [(done, 5, torch.float32) for done in range(1, 6)]
    assert torch.allclose(half.float(), sample(oracle(scheduler), scheduler, noise, 5), atol=0.03)
