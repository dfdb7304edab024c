"""Schedulers from stored options: the layout of diffusers, and what cannot work is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler

from ldm_video.core.errors import UserError
from ldm_video.diffusion.sampler import (
    DETERMINISTIC,
    STOCHASTIC,
    from_the_last,
    known_options,
    make_scheduler,
    sampling_timesteps,
)
from tests.sampler_support import BETAS, errors, make


def test_make_scheduler_reads_the_diffusers_layout(tmp_path: Path) -> None:
    """Stable Diffusion 1.5 ships a PNDM config; any allowed solver takes it over."""
    betas = {key: value for key, value in BETAS.items() if key.startswith("beta")}
    published = PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction")
    published.save_config(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    with pytest.raises(UserError, match="unknown scheduler 'PNDMScheduler'"):
        make_scheduler(stored)
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        scheduler = make_scheduler(stored, _class_name=name)
        assert type(scheduler).__name__ == name
        assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.steps_offset == 1
        assert torch.allclose(scheduler.alphas_cumprod, published.alphas_cumprod)
    make_scheduler(stored, _class_name="DDIMScheduler").save_config(tmp_path)
    again = make_scheduler(json.loads((tmp_path / "scheduler_config.json").read_text()))
    assert torch.allclose(again.alphas_cumprod, published.alphas_cumprod)


def test_a_stored_option_that_is_gone_is_passed_over() -> None:
    early = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.2.4", "tensor_format": "pt", "steps_offset": 1}
    assert known_options(early) == {key: value for key, value in early.items() if key != "tensor_format"}
    with pytest.raises(UserError, match="unknown scheduler option 'tensor_format'"):
        make_scheduler(early)


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC + STOCHASTIC if not name.startswith("FlowMatch")])
def test_a_flow_needs_the_levels_of_a_flow_and_they_need_it(name: str) -> None:
    """Sampled all the same, in the solvers that do, the mean was 1.22 where the data's is 0.3."""
    with pytest.raises(UserError, match="use_flow_sigmas"):
        make_scheduler(name, prediction_type="flow_prediction")
    if not name.startswith(("UniPC", "DPMSolver")):
        return
    with pytest.raises(UserError, match="use_flow_sigmas"):
        make_scheduler(name, use_flow_sigmas=True)
    scheduler = make_scheduler(name, prediction_type="flow_prediction", use_flow_sigmas=True)
    assert errors(scheduler, [50])[0] < 0.01


def test_timesteps_that_are_logarithms_are_refused() -> None:
    """Those of noise below 1 are negative, and were dropped as beyond the data: of four steps three were taken."""
    with pytest.raises(UserError, match="continuous"):
        make("EulerDiscreteScheduler", prediction_type="v_prediction", timestep_type="continuous")
    scheduler = make("EulerDiscreteScheduler", timestep_type="continuous")  # not heeded, as diffusers has it
    assert errors(scheduler, [100])[0] < 0.04


def test_latents_are_not_clipped_unless_asked() -> None:
    assert make_scheduler("DDIMScheduler").config.clip_sample is False
    assert make_scheduler("DDIMScheduler", clip_sample=True).config.clip_sample is True


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("KarrasScheduler", {}, "unknown scheduler 'KarrasScheduler'"),
        ("DDIMScheduler", {"beta_sart": 0.1}, "unknown scheduler option 'beta_sart'"),
        ("DDIMScheduler", {"beta_schedule": "cubic"}, "DDIMScheduler refuses"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "prediction_type"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "trailing"),
    ],
)
def test_make_scheduler_refuses_what_cannot_work(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_scheduler(name, **options)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("steps", [1, 4])
def test_few_steps_begin_at_the_last_timestep(name: str, steps: int) -> None:
    published = make(name) if name.startswith("FlowMatch") else make(name, timestep_spacing="leading")
    before = dict(published.config)
    scheduler = from_the_last(published)
    assert type(scheduler) is type(published) and dict(published.config) == before
    last = 1000 if name.startswith("FlowMatch") else 999
    assert sampling_timesteps(scheduler, steps)[0] == last
    changed = {key for key, value in scheduler.config.items() if value != before[key]}
    assert changed - {"_use_default_values"} == {"timestep_spacing"} & before.keys()
