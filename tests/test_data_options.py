"""Options of the wrong type or out of their range: one line when the object is built, not a traceback in a batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.clips import ClipStream
from data.prepare_parts.options import PrepareOptions, parse_options
from data.prepare_parts.report import Report
from data.sampling import Sampling
from data.scales import SeveralScales
from data.shards import ShardDataset
from ldm_video.core.errors import UserError

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_stride", [0, 1.5, "two", True]),
        ("candidates", [0, None]),
        ("around", [-1, 0.5]),
        ("average", [-1, "3"]),
        ("max_frames", [-1, None]),
        ("photo_share", [1.5, -0.1, NAN, "half"]),
        ("drawing_share", [2, True]),
        ("prefer_detail", [7, "yes"]),
        ("max_shrink", ["two", 0.5, INFINITE, NAN]),
        ("detail_power", ["x", INFINITE]),
        ("frames", [0, "two", True, 2.5]),
        ("seed", [-1, None, 0.5]),
        ("size", [0, -64, 64.5, [64], [64, 0], "64", None]),
        ("length", [0, "all"]),
        ("scale", [0.5, "4", NAN]),
        ("masks", [["blob"], {}, {"blob": INFINITE}, {"blob": "much"}, {"blob": NAN}, {7: 1.0}]),
        ("objects", [5]),
    ],
)
def test_options_of_clips(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(UserError, match=name.removesuffix("s")):
            ClipStream(**{name: value})  # type: ignore[arg-type]


def test_what_may_be_set_is_taken() -> None:
    sampling = {"max_stride": 1, "photo_share": 1, "max_shrink": 1, "max_frames": 0, "detail_power": -0.5}
    stream = ClipStream(size=[64, 96], masks={"blob": 1}, seed=0, frames=1, length=1, **sampling)  # type: ignore[arg-type]
    assert (stream.size, stream.sampling) == ((64, 96), Sampling(**sampling))  # type: ignore[arg-type]


@pytest.mark.parametrize("root", [5, [], [5], None])
def test_roots_are_paths(root: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="root is"):
        ShardDataset(root, cache=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1}, {"seed": None}, {"scales": 4}, {"weights": "1"},
        {"weights": [INFINITE]}, {"weights": ["much"]}, {"weights": [NAN]},
    ],
)  # fmt: skip
def test_options_of_several_scales(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        SeveralScales(lambda **_: None, **{"scales": [4], "weights": [1], **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["crf=[", "crf=", "cut=.nan", "static=-1", "black=.inf", "gop=1.5", "jobs=0", "=5", "crf.a=1"]
)
def test_options_of_prepare(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_options([text])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"options": None, "sources": {}},
        {"options": {}, "sources": []},
        {"options": {}, "sources": {"a.mp4": None}},
        {"options": {}, "sources": {"a.mp4": {"clips": [{"key": "a"}], "dropped": []}}},
        {"options": {}, "sources": {"a.mp4": {"clips": 3}}},
        {"options": {}, "sources": {"a.mp4": {"dropped": [{"reason": ""}]}}},
        [],
        None,
    ],
)
def test_a_file_that_is_no_report_is_named(content: object, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not a report"):
        Report(tmp_path, PrepareOptions(), False)
