"""The training objective: zero for a perfect denoiser, min-SNR weights, the draw of noise levels."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from ldm_video.diffusion.objective import Objective
from ldm_video.diffusion.process import Process

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


def process(prediction: str, zero_terminal_snr: bool = False) -> Process:
    if prediction == "flow":
        return Process.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0))
    return Process.from_scheduler(
        DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type=prediction,
            rescale_betas_zero_snr=zero_terminal_snr,
        )
    )


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_perfect_denoiser_has_zero_loss_at_every_level(prediction: str, zero_terminal_snr: bool) -> None:
    """It sees ``x_t`` and knows ``x_0``, works out the noise from them in float64, and answers by definition."""
    forward = process(prediction, zero_terminal_snr)
    objective = Objective(forward, weighting="min_snr")
    levels = torch.arange(1000)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn((1000, 1, 2, 2, 2), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    xt = forward.noisy(x0, noise, levels).double()

    alpha, sigma = (table.double().reshape(-1, 1, 1, 1, 1) for table in (forward.alphas, forward.sigmas))
    known_noise = (xt - alpha * x0) / sigma
    answer = {
        "epsilon": known_noise,
        "v_prediction": alpha * known_noise - sigma * x0,
        "sample": x0,
        "flow": known_noise - x0,
    }[prediction]
    loss, weight = objective.loss(answer.float(), x0, noise, levels)
    assert loss.shape == weight.shape == (1000,)
    assert loss.max() < 1e-8
    assert torch.isfinite(weight).all() and (weight > 0).all()


def test_loss_is_the_mean_square_of_each_sample() -> None:
    forward = process("epsilon")
    noise = torch.randn(3, 2, 4, 5, 5)
    prediction = noise.clone()
    prediction[1] += 2.0
    prediction[2, 0, 0, 0, 0] += 10.0
    loss, weight = Objective(forward).loss(prediction, torch.randn_like(noise), noise, torch.tensor([5, 500, 900]))
    assert loss.tolist() == pytest.approx([0.0, 4.0, 100.0 / 200], rel=1e-5)
    assert weight.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow"])
def test_min_snr_weights_follow_the_paper(prediction: str) -> None:
    """All weigh the error of the implied ``x_0`` by ``min(SNR, gamma)``, the paper's definition."""
    gamma, forward = 5.0, process(prediction)
    levels = torch.tensor([0, 100, 300, 600, 998])  # a flow ends without any signal; that step has a test of its own
    alpha, sigma = (table[levels].double() for table in (forward.alphas, forward.sigmas))
    snr = alpha**2 / sigma**2
    # How much one unit of output error moves the implied x_0: to_x0 is affine in the output.
    slopes = {"epsilon": sigma / alpha, "v_prediction": sigma, "flow": sigma, "sample": torch.ones_like(snr)}
    expected = snr.clamp(max=gamma) * slopes[prediction] ** 2
    weight = Objective(forward, "min_snr", gamma=gamma, floor=1e-9).weight(levels)
    assert torch.allclose(weight.double(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("prediction", "expected"), [("epsilon", 1.0), ("v_prediction", 0.1), ("sample", 0.1), ("flow", 0.1)]
)
def test_terminal_step_is_learned_at_zero_snr(prediction: str, expected: float) -> None:
    """The trap: by the formula alone the weight is 0 / 0 for epsilon, and 0 for all others."""
    forward = process(prediction, zero_terminal_snr=True)
    assert forward.alphas[-1] == 0
    weight = Objective(forward, "min_snr").weight(torch.tensor([999]))
    assert weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow"])
def test_the_floor_lifts_the_noisy_end_alone(prediction: str) -> None:
    """At the clean end v and flow vanish as the paper has it: there the x4-upscaler's weight is 5 / 10000."""
    x4 = DDIMScheduler(beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.02, prediction_type=prediction)
    forward = process("flow") if prediction == "flow" else Process.from_scheduler(x4)
    levels = torch.arange(1000)
    paper = Objective(forward, "min_snr", floor=1e-9).weight(levels)
    weight = Objective(forward, "min_snr").weight(levels)
    noisy = forward.snr(levels) < 1
    assert torch.equal(weight[~noisy], paper[~noisy])
    assert torch.equal(weight[noisy], paper[noisy].clamp(min=0.1))
    if prediction == "v_prediction":
        assert weight[0].item() == pytest.approx(5e-4, rel=1e-3)


def test_a_weight_that_would_vanish_is_refused() -> None:
    for prediction in ("v_prediction", "sample", "flow"):
        with pytest.raises(ValueError, match="never trains the first sampling step"):
            Objective(process(prediction, zero_terminal_snr=True), "min_snr", floor=0.0)
    Objective(process("epsilon", zero_terminal_snr=True), "min_snr", floor=0.0)  # its weight is 1 there
    Objective(process("v_prediction"), "min_snr", floor=0.0)  # its last step has some signal


def test_zero_terminal_snr_without_min_snr_gives_every_step_its_full_weight() -> None:
    weight = Objective(process("v_prediction", zero_terminal_snr=True)).weight(torch.arange(1000))
    assert torch.equal(weight, torch.ones(1000))


def test_half_precision_predictions_are_compared_in_float32() -> None:
    forward = process("v_prediction")
    x0, noise, levels = torch.randn(2, 1, 3, 4, 4), torch.randn(2, 1, 3, 4, 4), torch.tensor([3, 700])
    prediction = torch.zeros_like(x0)
    full, _ = Objective(forward).loss(prediction, x0, noise, levels)
    half, _ = Objective(forward).loss(prediction.bfloat16(), x0, noise, levels)
    assert half.dtype == torch.float32 and torch.equal(full, half)


def test_uniform_draw_covers_the_table() -> None:
    objective = Objective(process("epsilon"))
    drawn = objective.sample_timesteps(100_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=1000)
    assert len(counts) == 1000
    # 100 expected in each; six standard deviations of a Poisson count.
    assert counts.min() >= 40 and counts.max() <= 160
    assert torch.equal(drawn, objective.sample_timesteps(100_000, torch.Generator().manual_seed(0)))


def test_logit_normal_draw_has_its_quantiles() -> None:
    objective = Objective(process("flow"), draw="logit_normal", logit_mean=0.5, logit_std=0.8)
    drawn = objective.sample_timesteps(50_000, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0 and drawn.max() <= 999
    position = torch.tensor([0.1, 0.5, 0.9])
    expected = torch.sigmoid(0.5 + 0.8 * torch.special.ndtri(position))
    assert torch.allclose(torch.quantile(drawn / 1000, position), expected, atol=0.01)


def test_what_does_not_fit_is_refused() -> None:
    for options in ({"gamma": 0.0}, {"weighting": "p2"}, {"draw": "cosine"}, {"logit_std": 0.0}):
        with pytest.raises(ValueError):
            Objective(process("flow"), **options)
    with pytest.raises(ValueError, match="logit_normal"):
        Objective(process("epsilon"), draw="logit_normal")
