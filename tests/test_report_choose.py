"""What the report shows of a benchmark: the choice of frames, boxes and lines, and thinned curves."""

from __future__ import annotations

import numpy as np

from eval.report_parts import choose


def test_choice_of_frames() -> None:
    nan = np.nan
    spread = choose.difference({"a": np.array([1, 2, nan, 5, 3]), "b": np.array([2, 6, 9, 4, np.inf])})
    np.testing.assert_array_equal(spread, [1, 4, nan, 1, nan])
    assert choose.largest(spread, 3, apart=1) == [1, 0, 3]
    assert choose.largest(spread, 3, apart=2) == [1, 3]
    worst = choose.difference({"a": np.array([30.0, 20.0, 25.0])}, higher_is_better=True)
    assert choose.largest(worst, 1, apart=1) == [1]


def test_choice_of_box_and_line_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (20, 31, 3), dtype=np.uint8) for _ in range(3)]
    spread = np.ptp(np.stack(frames).astype(int), axis=0).sum(axis=-1)
    sums = {(y, x): spread[y : y + 6, x : x + 9].sum() for y in range(15) for x in range(23)}
    assert choose.most_different_box(frames, (6, 9)) == (*max(sums, key=lambda at: sums[at]), 6, 9)
    assert choose.most_different_box(frames, (50, 9))[0::2] == (0, 20)
    activity = rng.random((12, 40))
    row = max(range(12), key=lambda y: activity[y].sum())
    left = max(range(31), key=lambda x: activity[row, x : x + 10].sum())
    assert choose.busiest_line(activity, 10) == (row, left, 10)
    assert choose.busiest_line(activity, 100) == (row, 0, 40)


def test_long_curves_are_thinned() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan, np.nan, 8.0])
    np.testing.assert_array_equal(choose.thin(values, 2), [1, 4, np.nan, 8])
    np.testing.assert_array_equal(choose.thin(values, 1), values)
