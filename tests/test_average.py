"""The moving average of the weights: its memory grows with the run, up to the decay that is asked for."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ldm_video.training.average import WarmAverage


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))


class Stage(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def averaged(decay: float, values: list[float]) -> AveragedModel:
    model = Counter()
    average = AveragedModel(model, multi_avg_fn=WarmAverage(decay)._kwargs["multi_avg_fn"], use_buffers=True)
    for step, value in enumerate(values):
        model.weight.data.fill_(value)
        model.steps.fill_(step)
        average.update_parameters(model)
    return average


class Normed(pl.LightningModule):
    """A layer with buffers beside its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)


def test_the_first_steps_by_hand() -> None:
    average = averaged(0.998, [5.0, 1.0, 2.0])
    expected = 5.0  # the first is taken as it is
    for n, value in ((1, 1.0), (2, 2.0)):
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay) * value
    assert torch.isclose(average.module.weight, torch.tensor(expected)).all()


def test_the_beginning_of_a_short_run_is_forgotten() -> None:
    """With a constant decay of 0.998, 0.55 of the first step would be left after 300."""
    left = averaged(0.998, [1.0] + [0.0] * 300).module.weight.item()
    assert 0 < left < 1e-6
    assert averaged(0.9, [1.0] + [0.0] * 2000).module.weight.item() < 1e-12


def test_the_decay_that_is_asked_for_is_the_limit() -> None:
    values = [0.0] * 2000 + [1.0]
    assert torch.isclose(averaged(0.9, values).module.weight, torch.tensor(0.1)).all()


def test_whole_numbers_are_taken_as_they_are() -> None:
    assert averaged(0.5, [0.0] * 5).module.steps.item() == 4


def test_what_a_layer_measures_is_averaged_as_its_weights_are() -> None:
    """Statistics of the last step would not go with the averaged weights."""
    callback, trainer, model = WarmAverage(0.5), pl.Trainer(logger=False, enable_checkpointing=False), Normed()
    callback.setup(trainer, model, "fit")
    average = callback._average_model
    assert average is not None
    for value in (4.0, 1.0):
        model.norm.weight.data.fill_(value)
        model.norm.running_mean.fill_(value)
        average.update_parameters(model)
    expected = 2 / 11 * 4 + 9 / 11 * 1
    assert average.module.norm.weight.item() == pytest.approx(expected)
    assert average.module.norm.running_mean.item() == pytest.approx(expected)


def test_looking_at_the_average_of_a_model_in_half_precision_leaves_both_as_they_were() -> None:
    """The average is in float32: through the model and back it would be rounded."""
    callback, trainer, model = WarmAverage(0.5), pl.Trainer(logger=False, enable_checkpointing=False), Stage()
    callback.setup(trainer, model, "fit")
    average = callback._average_model
    assert average is not None
    average.module.weight.data.fill_(1 / 3)
    model.to(torch.bfloat16).weight.data.fill_(2)
    callback.on_validation_epoch_start(trainer, model)
    assert model.weight.item() == torch.tensor(1 / 3).bfloat16().item()
    callback.on_validation_epoch_end(trainer, model)
    assert (model.weight.item(), average.module.weight.item()) == (2, torch.tensor(1 / 3).item())


def test_the_average_lies_where_the_model_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callbacks are set up before the model is moved there."""
    callback, trainer, model = WarmAverage(0.5), pl.Trainer(logger=False, enable_checkpointing=False), Stage()
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("meta"))
    callback.setup(trainer, model, "fit")
    average = callback._average_model
    assert average is not None
    assert {x.device.type for x in average.state_dict().values()} == {"meta"}
    assert model.weight.device.type == "cpu"
