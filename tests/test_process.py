"""The forward process against diffusers' own arithmetic and against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from ldm_video.diffusion.process import Process

SHAPE = (5, 2, 3, 4, 4)  # b t c h w
LEVELS = torch.tensor([0, 1, 499, 998, 999])
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

VARIANCE_PRESERVING = [
    DDPMScheduler(),
    DDIMScheduler(**STABLE_DIFFUSION),
    DDIMScheduler(**STABLE_DIFFUSION, prediction_type="v_prediction", rescale_betas_zero_snr=True),
    DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing"
    ),
    PNDMScheduler(trained_betas=torch.linspace(1e-4, 0.03, 1000).tolist()),
    UniPCMultistepScheduler(**STABLE_DIFFUSION, prediction_type="v_prediction", timestep_spacing="trailing"),
]
FLOWS = [
    FlowMatchEulerDiscreteScheduler(),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
]


def name(scheduler: SchedulerMixin) -> str:
    return f"{type(scheduler).__name__}-{scheduler.config.get('prediction_type', 'flow')}"


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A clean sample and noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


@pytest.mark.parametrize("scheduler", VARIANCE_PRESERVING, ids=name)
def test_noisy_equals_diffusers(scheduler: SchedulerMixin) -> None:
    x0, noise = pair()
    if hasattr(scheduler, "set_begin_index"):  # these look the level up in the steps that they are set to
        scheduler.set_timesteps(1000)
    ours = Process.from_scheduler(scheduler).noisy(x0, noise, LEVELS)
    assert torch.allclose(ours, scheduler.add_noise(x0, noise, LEVELS), atol=1e-6)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_noisy_equals_diffusers_in_its_other_scale(kind: type[SchedulerMixin]) -> None:
    """Euler and Heun keep ``x / alpha``."""
    scheduler = kind(**STABLE_DIFFUSION)
    process = Process.from_scheduler(scheduler)
    x0, noise = pair()
    scheduler.set_timesteps(timesteps=LEVELS.flip(0).tolist())
    theirs = scheduler.add_noise(x0, noise, LEVELS.float())
    alpha, _ = process.coefficients(LEVELS, x0.ndim)
    assert torch.allclose(process.noisy(x0, noise, LEVELS), theirs * alpha, atol=1e-5)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_velocity_equals_diffusers(kind: type[SchedulerMixin], rescale: bool) -> None:
    scheduler = kind(**STABLE_DIFFUSION, prediction_type="v_prediction", rescale_betas_zero_snr=rescale)
    x0, noise = pair()
    ours = Process.from_scheduler(scheduler).target(x0, noise, LEVELS)
    assert torch.allclose(ours, scheduler.get_velocity(x0, noise, LEVELS), atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = Process.from_scheduler(scheduler)
    x0, noise = pair()
    timesteps = process.timestep_of(LEVELS)
    theirs = scheduler.scale_noise(x0, timesteps, noise)
    assert torch.allclose(process.noisy(x0, noise, LEVELS), theirs, atol=1e-6)
    assert torch.allclose(process.noisy(x0, noise, timesteps), theirs, atol=1e-6)
    assert torch.equal(process.target(x0, noise, LEVELS), noise - x0)


@pytest.mark.parametrize("scheduler", VARIANCE_PRESERVING + FLOWS, ids=name)
def test_levels_rise_and_keep_their_sum(scheduler: SchedulerMixin) -> None:
    process = Process.from_scheduler(scheduler)
    power = 1 if process.prediction == "flow" else 2
    assert len(process) == 1000
    assert (process.sigmas.diff() >= 0).all() and (process.alphas.diff() <= 0).all()
    assert (process.timesteps.diff() > 0).all()
    assert torch.allclose(process.alphas**power + process.sigmas**power, torch.ones(1000), atol=1e-6)


@pytest.mark.parametrize("scheduler", VARIANCE_PRESERVING + FLOWS, ids=name)
def test_the_inverse_recovers_the_sample(scheduler: SchedulerMixin) -> None:
    process = Process.from_scheduler(scheduler)
    x0, noise = pair()
    levels = torch.tensor([1, 200, 499, 700, 800])
    xt = process.noisy(x0, noise, levels)
    output = process.target(x0, noise, levels)
    assert torch.allclose(process.to_x0(xt, output, levels), x0, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_move_between_levels_is_the_step_of_ddim(prediction: str, spacing: str) -> None:
    scheduler = DDIMScheduler(
        **STABLE_DIFFUSION, prediction_type=prediction, timestep_spacing=spacing, clip_sample=False
    )
    scheduler.set_timesteps(4)
    process, (x0, xt) = Process.from_scheduler(scheduler), pair()
    for t, to in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        alpha, sigma = process.coefficients(t, xt.ndim)
        output = process.target(x0, (xt - alpha * x0) / sigma, t)
        expected = scheduler.step(output, int(t), xt).prev_sample
        torch.testing.assert_close(process.moved(xt, x0, t, to), expected, atol=2e-5, rtol=1e-5)


def test_a_move_between_levels_is_the_step_of_a_flow() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    process, (x0, xt) = Process.from_scheduler(scheduler), pair()
    for t, to in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        expected = scheduler.step((xt - x0) / (t / 1000), t, xt).prev_sample
        torch.testing.assert_close(process.moved(xt, x0, t, to), expected, atol=1e-5, rtol=1e-5)


def test_config_alone_decides() -> None:
    """Neither the steps that a scheduler is set to nor the solver that carries the config change the process."""
    options: dict[str, Any] = STABLE_DIFFUSION | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    expected = Process.from_scheduler(DDIMScheduler(**options))
    for kind in (EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        scheduler = kind(**options)
        scheduler.set_timesteps(7)
        process = Process.from_scheduler(scheduler)
        assert torch.equal(process.alphas, expected.alphas) and process.prediction == "v"
    flow = FlowMatchEulerDiscreteScheduler(shift=2.0)
    before = Process.from_scheduler(flow)
    flow.set_timesteps(7)
    assert torch.equal(Process.from_scheduler(flow).sigmas, before.sigmas)


def test_a_shift_that_depends_on_the_size_is_none_of_the_trainings() -> None:
    dynamic = Process.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True))
    assert torch.allclose(dynamic.sigmas, torch.arange(1, 1001) / 1000, atol=1e-6)


def test_zero_terminal_snr() -> None:
    options: dict[str, Any] = STABLE_DIFFUSION | {"rescale_betas_zero_snr": True}
    x0, noise = pair()
    last = torch.full((5,), 999)
    velocity = Process.from_scheduler(DDIMScheduler(**options, prediction_type="v_prediction"))
    assert velocity.zero_terminal_snr and velocity.snr(last).eq(0).all()
    xt = velocity.noisy(x0, noise, last)
    assert torch.equal(xt, noise)
    assert torch.allclose(velocity.to_x0(xt, velocity.target(x0, noise, last), last), x0)

    epsilon = Process.from_scheduler(DDIMScheduler(**options))
    with pytest.raises(ValueError, match="zero terminal SNR"):
        epsilon.to_x0(xt, noise, last)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        epsilon.to_x0(xt, noise, 999.0)
    before = torch.full((5,), 900)
    assert torch.allclose(epsilon.to_x0(epsilon.noisy(x0, noise, before), noise, before), x0, atol=1e-4)


def test_snr_is_the_ratio_of_alpha_bars() -> None:
    scheduler = DDPMScheduler()
    expected = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    assert torch.allclose(Process.from_scheduler(scheduler).snr(torch.arange(1000)), expected, rtol=1e-5)


@pytest.mark.parametrize("scheduler", VARIANCE_PRESERVING[:3] + FLOWS[:2], ids=name)
def test_timesteps_between_the_entries(scheduler: SchedulerMixin) -> None:
    process = Process.from_scheduler(scheduler)
    at = process.coefficients(process.timestep_of(LEVELS).float())
    for interpolated, entry in zip(at, process.coefficients(LEVELS), strict=True):
        assert torch.allclose(interpolated, entry, atol=1e-6)
    middle = (process.timesteps[400].float() + process.timesteps[401].float()) / 2
    alpha, sigma = process.coefficients(middle)
    assert process.alphas[401] < alpha < process.alphas[400]
    if process.prediction == "flow":
        anywhere = torch.tensor([0.0, 0.3, 1.0, 123.4, 1000.0])
        alphas, sigmas = process.coefficients(anywhere)
        assert torch.allclose(sigmas, anywhere / 1000, atol=1e-6)
        assert torch.allclose(alphas, 1 - anywhere / 1000, atol=1e-6)
        assert (alpha + sigma).item() == pytest.approx(1.0, abs=1e-6)
    else:
        assert (alpha**2 + sigma**2).item() == pytest.approx(1.0, abs=1e-6)
        assert process.coefficients(1e9)[1] == process.sigmas[-1]


def test_scalars_broadcast_and_types_are_kept() -> None:
    process = Process.from_scheduler(FlowMatchEulerDiscreteScheduler())
    x0, noise = pair()
    assert torch.allclose(process.noisy(x0, noise, 250.0), 0.75 * x0 + 0.25 * noise, atol=1e-6)
    assert process.noisy(x0.bfloat16(), noise.bfloat16(), LEVELS).dtype == torch.bfloat16
    assert process.noisy(x0.double(), noise.double(), LEVELS).dtype == torch.float64


@pytest.mark.parametrize(
    "scheduler",
    [
        EDMEulerScheduler(),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        UniPCMultistepScheduler(prediction_type="flow_prediction"),
        DPMSolverMultistepScheduler(use_flow_sigmas=True),
        DDIMScheduler(prediction_type="flow_prediction"),
        EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
    ],
    ids=["EDM", "inverted flow", "flow of other levels", "noise of a flow's levels", "flow in DDIM", "logarithms"],
)
def test_other_processes_are_refused(scheduler: SchedulerMixin) -> None:
    with pytest.raises(ValueError):
        Process.from_scheduler(scheduler)
