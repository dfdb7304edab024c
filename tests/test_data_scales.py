"""Several scales in one stream: whole batches of one scale, every scale as often as asked, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import train
from data.clips import ClipDataset
from data.scales import SeveralScales
from ldm_video.core.errors import UserError
from tests.cli_support import ROOT, call


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Callable[..., ClipDataset]:
    folder = tmp_path_factory.mktemp("scales")
    write_video(folder / "clips" / "a.mp4", frames=4, size=(112, 128))
    return partial(
        ClipDataset, folder / "clips", cache=folder / "cache", frames=2, size=48, degrade="clean", masks={"empty": 1}
    )


def sides(items: SeveralScales, count: int) -> list[int]:
    return [items[index]["lr"].shape[-1] for index in range(count)]


def test_items_in_a_row_have_one_scale(clips: Callable[..., ClipDataset]) -> None:
    items = SeveralScales(clips, [4, 2], [1, 1], together=4)
    found = np.array(sides(items, 80)).reshape(-1, 4)
    assert (found == found[:, :1]).all()
    assert set(found[:, 0]) == {12, 24}
    assert {items[i]["hr"].shape[-1] for i in range(8)} == {48}
    for batch in DataLoader(items, batch_size=4, sampler=range(40)):  # collation would refuse mixed sizes
        assert len(batch["lr"]) == 4


def test_an_item_is_that_of_its_scale_s_own_data_set(clips: Callable[..., ClipDataset]) -> None:
    items = SeveralScales(clips, [4, 2], [1, 1], together=1, seed=3)
    for index in range(12):
        item = items[index]
        own = clips(scale=48 // item["lr"].shape[-1])[index]
        assert torch.equal(item["lr"], own["lr"]) and torch.equal(item["hr"], own["hr"])
    assert sides(items, 12) == sides(SeveralScales(clips, [4, 2], [1, 1], together=1, seed=3), 12)
    assert sides(items, 40) != sides(SeveralScales(clips, [4, 2], [1, 1], together=1, seed=4), 40)


def test_weights_decide_how_often(clips: Callable[..., ClipDataset]) -> None:
    found = sides(SeveralScales(clips, [4, 2], [9, 1], together=1), 200)
    assert 5 <= found.count(24) <= 40  # 20 expected, +- 4.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scales": [4, 2], "weights": [1]}, "positive weight"),
        ({"scales": [4, 2], "weights": [1, 0]}, "positive weight"),
        ({"scales": [], "weights": []}, "positive weight"),
        ({"scales": [4], "weights": [1], "together": 0}, "together is 0"),
        ({"scales": [4, 5], "weights": [1, 1]}, "no multiple of 5"),
    ],
)
def test_what_does_not_fit_is_refused(clips: Callable[..., ClipDataset], options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        SeveralScales(clips, **options)


def test_a_step_with_several_scales_is_refused(
    clips: Callable[..., ClipDataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    folder, cache = clips.args[0], clips.keywords["cache"]  # type: ignore[attr-defined]
    options = [f"data.root={folder}", f"data.cache={cache}", "data.frames=2", "data.size=48", "logger=csv"]
    options += ["task.pixel_loss.perceptual=null", "trainer.accelerator=cpu", f"output={tmp_path / 'run'}"]
    config = str(ROOT / "configs" / "train" / "tiny" / "codec.yaml")
    assert call(train, "--config", config, *options, "watch=null", "data.batch=3", "data.train.together=64") == 2
    assert "data.train.together=64 is no multiple of the 3 clips of a step; set it to 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
