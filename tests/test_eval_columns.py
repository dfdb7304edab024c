"""What columns of scores say: unit, order, and which value is the best."""

from __future__ import annotations

import pytest

from eval.columns import best, describe, ordered

TWO = {"a": {"mean": 0.1, "gap": 0.3}, "b": {"mean": 0.2, "gap": 0.1}}


@pytest.mark.parametrize(
    ("names", "winner"),
    [
        (("psnr", "psnr_y", "ssim", "ssim_y@inside", "ssim_window65"), {"b"}),
        (("lpips", "lpips_vgg@band", "dists", "tof", "tlpips", "seam_error:time"), {"a"}),
        (("ewarp_lai[dis]", "ewarp_evalcrafter", "temporal_flickering", "lowres_consistency"), {"b"}),  # by its gap
        (("other",), set()),
    ],
)
def test_the_best_of_a_column(names: tuple[str, ...], winner: set[str]) -> None:
    assert [best(describe(name), TWO) for name in names] == [winner] * len(names)


def test_values_that_are_printed_alike_are_a_tie() -> None:
    assert best(describe("psnr"), {"a": {"mean": 30.001}, "b": {"mean": 30.004}, "c": {"mean": 29}}) == {"a", "b"}
    assert best(describe("psnr"), {"a": {"mean": 30.0}}) == set()


@pytest.mark.parametrize(
    ("name", "text"),
    [("psnr", "1.23"), ("ewarp_lai", "123.457"), ("ewarp_evalcrafter", "1234.568"), ("tlpips", "1.23"),
     ("lpips", "1.235"), ("lowres_consistency", "1.2"), ("other", "1.2346")],
)  # fmt: skip
def test_a_score_is_printed_in_the_columns_unit(name: str, text: str) -> None:
    assert describe(name).text(1.2345678) == text
    assert describe(name).text(None) == "-"


def test_whole_frames_come_first_and_references_not_at_all() -> None:
    names = ["other", "lpips@outside", "lpips@inside", "psnr@band", "psnr@inside", "lpips", "psnr", "psnr:ref"]
    expected = ["psnr", "lpips", "other", "psnr@inside", "lpips@inside", "psnr@band", "lpips@outside"]
    assert [column.name for column in ordered(names)] == expected
