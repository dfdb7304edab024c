"""Where a model goes, and in which type, when nobody says."""

from __future__ import annotations

import pytest
import torch

from ldm_video.core.errors import UserError
from ldm_video.models.device import computes_bf16, place
from tests.model_support import small_video_model


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_works_in_bfloat16_where_it_has_it(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert {p.dtype for p in place(small_video_model(), "cpu").parameters()} == {dtype}
    assert {p.dtype for p in place(small_video_model(), "cpu", "fp32").parameters()} == {torch.float32}


def test_a_torch_that_cannot_tell_counts_as_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_bf16()


@pytest.mark.parametrize(("full", "line"), [("empty", "the memory of device 'cpu' is full"), ("to", "does not fit")])
def test_memory_that_others_have_filled_is_one_line(full: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model comes, and while it comes."""

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = small_video_model()
    monkeypatch.setattr(torch if full == "empty" else torch.nn.Module, full, fail)
    with pytest.raises(UserError, match=line):
        place(model, "cpu")
