"""What people are shown of a model that takes no step, while it is trained."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.cli_support import tiny_model
from tests.task_support import denoiser_task, few_step_task, make_batch


def test_a_model_without_steps_is_looked_at_with_some_where_its_decoder_stands_still() -> None:
    """With few_step the decoder shows what is learned; with the denoiser's stage nothing would."""
    batch = make_batch()
    for make, differs in ((denoiser_task, True), (few_step_task, False)):
        model = tiny_model()
        model.sampling = replace(model.sampling, steps=0)
        task = make(model)
        before = task.restore(batch)
        with torch.no_grad():
            for parameter in model.denoiser.parameters():
                parameter.add_(0.1)
        assert torch.equal(before, task.restore(batch)) != differs
        assert model.sampling.steps == 0
