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
from ldm_video.training.codec_task import CodecTask
from ldm_video.training.order import ClipOrder
from tests.cli_support import call
from tests.train_support import overfit_options


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Callable[..., ClipDataset]:
    folder = tmp_path_factory.mktemp("scales")
    write_video(folder / "clips" / "a.mp4", frames=4, size=(112, 128))
    return partial(
        ClipDataset, folder / "clips", cache=folder / "cache", frames=2, size=48, degrade="clean", masks={"empty": 1}
    )


def several(clips: Callable[..., ClipDataset], weights: list[int], together: int = 1, seed: int = 0) -> SeveralScales:
    items = SeveralScales(clips, [4, 2], weights, seed)
    items.together = together
    return items


def sides(items: SeveralScales, count: int) -> list[int]:
    return [items[index]["lr"].shape[-1] for index in range(count)]


def test_items_in_a_row_have_one_scale(clips: Callable[..., ClipDataset]) -> None:
    items = several(clips, [1, 1], together=4)
    found = np.array(sides(items, 80)).reshape(-1, 4)
    assert (found == found[:, :1]).all()
    assert set(found[:, 0]) == {12, 24}
    assert {items[i]["hr"].shape[-1] for i in range(8)} == {48}
    for batch in DataLoader(items, batch_size=4, sampler=range(40)):  # collation would refuse mixed sizes
        assert len(batch["lr"]) == 4


def test_an_item_is_that_of_its_scale_s_own_data_set(clips: Callable[..., ClipDataset]) -> None:
    items = several(clips, [1, 1], seed=3)
    for index in range(12):
        item = items[index]
        own = clips(scale=48 // item["lr"].shape[-1])[index]
        assert torch.equal(item["lr"], own["lr"]) and torch.equal(item["hr"], own["hr"])
    assert sides(items, 12) == sides(several(clips, [1, 1], seed=3), 12)
    assert sides(items, 40) != sides(several(clips, [1, 1], seed=4), 40)


def test_weights_decide_how_often(clips: Callable[..., ClipDataset]) -> None:
    found = sides(several(clips, [9, 1]), 200)
    assert 5 <= found.count(24) <= 40  # 20 expected, +- 4.2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scales": [4, 2], "weights": [1]}, "positive weight"),
        ({"scales": [4, 2], "weights": [1, 0]}, "positive weight"),
        ({"scales": [], "weights": []}, "positive weight"),
        ({"scales": [4, 5], "weights": [1, 1]}, "not a multiple of 5"),
    ],
)
def test_what_does_not_fit_is_refused(clips: Callable[..., ClipDataset], options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        SeveralScales(clips, **options)


@pytest.mark.parametrize(("batch", "world"), [(3, 1), (4, 32), (5, 3), (24, 1)])
def test_the_clips_of_a_step_have_one_scale(batch: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all processes, however many clips they take."""
    items = SeveralScales(lambda scale: [{"scale": scale}] * (40 * batch * world), [4, 2], [1, 1])  # type: ignore[arg-type]
    loader = DataLoader(items, batch_size=batch, sampler=ClipOrder(40 * batch))
    train.share_scales([loader], batch * world)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)
    steps: list[set[float]] = [set() for _ in range(40)]
    for rank in range(world):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        for step, taken in zip(steps, loader, strict=True):
            step |= set(taken["scale"].tolist())
    assert all(len(step) == 1 for step in steps)
    assert set.union(*steps) == {4, 2}


def test_a_run_takes_steps_of_several_scales(
    clips: Callable[..., ClipDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a batch that is no power of two, from the command line on."""
    seen = []
    step = CodecTask.training_step

    def watched(self: CodecTask, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        seen.append(batch["lr"].shape)
        return step(self, batch, index)

    monkeypatch.setattr(CodecTask, "training_step", watched)
    options = overfit_options(clips.keywords["cache"].parent, steps=8)  # type: ignore[attr-defined]
    scales = ["data.train.scales=[4,2]", "data.train.weights=[1,1]", "data.batch=3", "trainer.overfit_batches=0"]
    assert call(train, *options, *scales, "data.size=48", f"output={tmp_path}") == 0
    assert set(seen) == {(3, 2, 3, 12, 12), (3, 2, 3, 24, 24)}
