"""Paired folders: the crops are of one window, holes are honest, bad pairs are named."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.clips import ClipDataset
from data.pairs import PairDataset, touched
from ldm_video.config import build
from ldm_video.core.errors import UserError
from tests.data_support import same


def write_frames(folder: Path, frames: np.ndarray) -> Path:
    """``t h w c`` RGB as PNG files: no codec between the test and the pixels."""
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{index:03d}.png"), frame[..., ::-1])
    return folder


def moving(height: int, width: int, seed: int, frames: int = 8) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4 + frames, 3)).astype(np.uint8)
    wide = cv2.resize(coarse, (width + 4 * frames, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([wide[:, 4 * index : 4 * index + width] for index in range(frames)])


def make_root(root: Path, scale: int = 4, names: tuple[str, ...] = ("one", "two")) -> Path:
    """``lr`` is every ``scale``-th pixel of ``hr``, so that a wrong window cannot go unseen."""
    for seed, name in enumerate(names):
        hr = moving(96, 120, seed)
        write_frames(root / "hr" / name, hr)
        write_frames(root / "lr" / name, hr[:, ::scale, ::scale])
    return root


def dataset(root: Path, **options: object) -> PairDataset:
    defaults = {"frames": 3, "size": 48, "cache": root / ".cache"}
    return PairDataset(root, **{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_both_crops_show_the_same_window(scale: int, tmp_path: Path) -> None:
    items = dataset(make_root(tmp_path, scale), size=(48, 64), scale=scale, masks={"empty": 1})
    offsets = set()
    for index in range(24):
        item = items[index]
        assert item["hr"].shape == (3, 3, 48, 64)
        assert item["lr"].shape == (3, 3, 48 // scale, 64 // scale)
        # A mirrored crop begins with the last pixel of each group of `scale`.
        mirrored = item["hr"][..., ::scale, scale - 1 :: scale]
        assert torch.equal(item["lr"], item["hr"][..., ::scale, ::scale]) or torch.equal(item["lr"], mirrored)
        offsets.add(item["hr"][0].sum().item())
    assert len(offsets) > 10


def test_items_are_those_of_the_folder_of_clips(tmp_path: Path, tiny_video: Path) -> None:
    items = dataset(make_root(tmp_path))
    (tmp_path / "hr" / "one.txt").write_text("a caption\n")
    clips = ClipDataset(tiny_video.parent, frames=3, size=48, cache=tmp_path / ".cache")
    ours, theirs = items[0], clips[0]
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in theirs.items()}
    assert {k: v.shape for k, v in ours.items() if not isinstance(v, str)} == {
        k: v.shape for k, v in theirs.items() if not isinstance(v, str)
    }
    assert {item["name"]: item["caption"] for item in map(items.__getitem__, range(12))} == {
        "one": "a caption", "two": "",
    }  # fmt: skip


def test_an_item_is_a_function_of_seed_and_index_with_any_workers(tmp_path: Path) -> None:
    items = dataset(make_root(tmp_path), length=8)
    alone = [items[i] for i in range(8)]
    again = dataset(tmp_path)
    assert all(same(a, again[i]) for i, a in reversed(list(enumerate(alone))))
    assert all(same(a, b) for a, b in zip(alone, DataLoader(items, batch_size=None, num_workers=2), strict=True))
    assert not any(same(a, again[8 + i]) for i, a in enumerate(alone))
    assert not any(same(a, dataset(tmp_path, seed=1)[i]) for i, a in enumerate(alone))


def test_low_res_frames_of_pairs_may_be_averaged_too(tmp_path: Path) -> None:
    root = make_root(tmp_path, scale=2)
    plain, averaged = (dataset(root, scale=2, average=average) for average in (0, 2))
    pairs = [(plain[i], averaged[i]) for i in range(8)]
    assert all(torch.equal(one["hr"], two["hr"]) and torch.equal(one["hole"], two["hole"]) for one, two in pairs)
    assert any(not torch.equal(one["lr"], two["lr"]) for one, two in pairs)


@pytest.mark.parametrize("size", ["hr", "lr"])
def test_a_given_mask_is_cropped_with_the_frames_and_paints_nothing(size: str, tmp_path: Path) -> None:
    """The hole is where the picture is pure red, so that each crop tells where its hole must be."""
    hr = moving(96, 120, 0)
    hole = np.zeros((8, 96, 120), bool)
    for index in range(8):
        hole[index, 24:72, 16 + 4 * index : 56 + 4 * index] = True
    hr[~hole & (hr[..., 0] > 250)] -= 50
    hr[hole] = (255, 0, 0)
    write_frames(tmp_path / "hr" / "a", hr)
    write_frames(tmp_path / "lr" / "a", hr[:, ::4, ::4])
    mask = np.repeat((255 * hole[..., None]).astype(np.uint8), 3, -1)
    write_frames(tmp_path / "mask" / "a", mask if size == "hr" else mask[:, ::4, ::4])
    items, shares = dataset(tmp_path), []
    for index in range(12):
        item = items[index]
        red = (item["hr"][:, 0] == 1) & (item["hr"][:, 1] == -1) & (item["hr"][:, 2] == -1)
        assert torch.equal(item["hole"][:, 0] == 1, red)
        assert set(item["hole"].unique().tolist()) <= {0.0, 1.0}
        low_red = (item["lr"][:, 0] == 1) & (item["lr"][:, 1] == -1)
        assert low_red.float().mean().item() == pytest.approx(red.float().mean().item(), abs=0.05)
        shares.append(red.float().mean().item())
    assert max(shares) - min(shares) > 0.2


@pytest.mark.parametrize("scale", [1.25, 2.5, 4])
def test_a_small_mask_lies_where_its_pixels_do(scale: float, tmp_path: Path) -> None:
    """A pixel of the hole is one whose middle lies in a white pixel of the mask."""
    low, size = (40, 48), (int(40 * scale), int(48 * scale))
    still = moving(*size, seed=0, frames=1)[0]
    write_frames(tmp_path / "hr" / "one", np.stack([still] * 3))
    write_frames(tmp_path / "lr" / "one", np.stack([cv2.resize(still, low[::-1])] * 3))
    white = np.random.default_rng(0).random(low) < 0.5
    write_frames(tmp_path / "mask" / "one", np.repeat(255 * white.astype(np.uint8)[None, ..., None], 3, -1))
    items = dataset(tmp_path, size=size, scale=scale)
    rows, columns = (np.floor((np.arange(side) + 0.5) / scale).astype(int) for side in size)
    inside = [np.abs((np.arange(side) + 0.5) / scale % 1 - 0.5) < 0.499 for side in size]  # not between two pixels
    expected = white[rows][:, columns]
    hole = items[0]["hole"][0, 0].numpy()
    either = [(seen == expected)[inside[0]][:, inside[1]].all() for seen in (hole, hole[:, ::-1])]  # mirrored or not
    assert any(either)


def test_one_mask_holds_for_the_clip(tmp_path: Path) -> None:
    make_root(tmp_path, names=("one",))
    (tmp_path / "mask").mkdir()
    mask = np.zeros((96, 120), np.uint8)
    mask[:, :60] = 255
    cv2.imwrite(str(tmp_path / "mask" / "one.png"), mask)
    holes = [dataset(tmp_path)[index]["hole"] for index in range(10)]
    assert all(torch.equal(hole[0], hole[frame]) for hole in holes for frame in range(3))
    assert 0 < torch.stack(holes).mean() < 1


def test_a_drawn_hole_shows_nothing_of_what_was_there(tmp_path: Path) -> None:
    make_root(tmp_path / "a")
    for name in ("one", "two"):  # other high-res frames, wholly other low-res frames: the same draw of window and hole
        write_frames(tmp_path / "b" / "hr" / name, moving(96, 120, 9))
        write_frames(tmp_path / "b" / "lr" / name, moving(24, 30, 8))
    options = {"masks": {"box": 1, "blob": 1}, "candidates": 1}
    one, two = (dataset(tmp_path / part, **options) for part in "ab")
    for index in range(10):
        a, b = one[index], two[index]
        assert torch.equal(a["hole"], b["hole"])
        inside = torch.from_numpy(touched(a["hole"][:, 0].numpy(), (12, 12)))[:, None].expand(-1, 3, -1, -1) > 0
        assert torch.equal(a["lr"][inside], b["lr"][inside])
        assert not torch.equal(a["lr"][~inside], b["lr"][~inside])


def test_touched_takes_every_pixel_that_the_hole_falls_into() -> None:
    hole = np.zeros((1, 12, 12), np.float32)
    hole[0, 3, 4] = hole[0, 8:12, 8:12] = 1
    expected = np.zeros((1, 3, 3))
    expected[0, 0, 1] = expected[0, 2, 2] = 1
    assert np.array_equal(touched(hole, (3, 3)), expected)
    for size in ((8, 8), (5, 7)):
        small = touched(hole, size)
        for y, x in np.ndindex(size):
            rows = slice(12 * y // size[0], -(-12 * (y + 1) // size[0]))
            columns = slice(12 * x // size[1], -(-12 * (x + 1) // size[1]))
            assert small[0, y, x] == hole[0, rows, columns].max()


def test_a_changed_folder_of_frames_is_read_again(tmp_path: Path) -> None:
    before = dataset(make_root(tmp_path, names=("one",)), prefer_detail=1.0)[0]["hr"]
    for path in (tmp_path / "hr" / "one").iterdir():
        cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    assert torch.allclose(dataset(tmp_path, prefer_detail=1.0)[0]["hr"], -before, atol=1e-6)


def test_bad_pairs_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_root(tmp_path, names=("good",))
    write_frames(tmp_path / "hr" / "alone", moving(96, 120, 0))
    write_frames(tmp_path / "lr" / "orphan", moving(24, 32, 0))
    for name, high, low in (
        ("size", moving(96, 120, 0), moving(24, 32, 0)),
        ("count", moving(96, 120, 0), moving(24, 30, 0, 7)),
        ("short", moving(96, 120, 0, 2), moving(24, 30, 0, 2)),
        ("small", moving(40, 120, 0), moving(10, 30, 0)),
        ("mask", moving(96, 120, 0), moving(24, 30, 0)),
    ):
        write_frames(tmp_path / "hr" / name, high[:, : low.shape[1] * 4])
        write_frames(tmp_path / "lr" / name, low)
    write_frames(tmp_path / "mask" / "mask", moving(96, 120, 0, 4))
    (tmp_path / "hr" / "broken.mp4").write_bytes(b"no video" * 50)
    (tmp_path / "lr" / "broken.mp4").write_bytes(b"no video" * 50)
    with caplog.at_level(logging.WARNING):
        items = dataset(tmp_path)
    assert [pair.hr.name for pair in items.pairs] == ["good"]
    (message,) = caplog.messages
    assert "left out 8 pairs" in message
    named = ("alone", "size", "count", "short", "small", "broken.mp4")
    assert all(f"{tmp_path}/hr/{name}" in message for name in named)
    assert "lr/orphan" in message and "mask/mask" in message


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        dataset(tmp_path)
    make_root(tmp_path)
    with pytest.raises(UserError, match="no usable pair"):
        dataset(tmp_path, scale=2)
    with pytest.raises(UserError, match=r"data\.degrade=null"):
        dataset(tmp_path, degrade="sd")
    with pytest.raises(UserError, match="multiple"):
        dataset(tmp_path, size=50)
    with pytest.raises(IndexError):
        dataset(tmp_path)[-1]
    node = {"target": "data.pairs.PairDataset", "root": str(tmp_path), "degrade": None, "frames": 3, "size": 48}
    assert len(build({**node, "cache": str(tmp_path / ".cache")}).pairs) == 2


def test_videos_pair_with_videos_of_another_suffix(tmp_path: Path) -> None:
    for part, frames, suffix in (("hr", moving(96, 120, 0), "mkv"), ("lr", moving(24, 30, 0), "mp4")):
        (tmp_path / part).mkdir()
        with av.open(str(tmp_path / part / f"a.{suffix}"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode(None))
    assert dataset(tmp_path)[0]["lr"].shape == (3, 3, 12, 12)
