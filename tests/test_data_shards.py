"""Tar shards: purity, resume, exact frames, captions, names."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from data.cache import read_video
from data.encoded import EncodedVideo
from data.shards import expand
from ldm_video.core.errors import UserError
from ldm_video.training.order import ClipOrder
from tests.data_support import same
from tests.shards_support import clip_bytes, dataset, picture, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of three, three and one clips; every second clip has a caption."""
    return write_shards(tmp_path_factory)


def test_items_have_the_stated_shapes_and_captions(shards: Path, tmp_path: Path) -> None:
    items = dataset(f"{shards}/clips-{{000..002}}.tar", tmp_path, size=(48, 64), scale=2)
    captions = {}
    for index in range(7):
        item = items[index]
        assert item["hr"].shape == (3, 3, 48, 64)
        assert item["lr"].shape == (3, 3, 24, 32)
        assert item["hole"].shape == (3, 1, 48, 64)
        assert max(item["hr"].abs().max(), item["lr"].abs().max()) <= 1
        captions[item["name"]] = item["caption"]
    assert captions == {f"film/{n:02d}": f"picture {n}" if n % 2 else "" for n in range(7)}


def test_an_epoch_takes_every_clip_once_in_an_order_of_its_own(shards: Path, tmp_path: Path) -> None:
    items = dataset(shards, tmp_path)
    epochs = [[items.sample(7 * epoch + i).key for i in range(7)] for epoch in range(6)]
    assert all(sorted(epoch) == [f"film/{n:02d}" for n in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    other = dataset(shards, tmp_path, seed=1)
    assert [other.sample(i).key for i in range(7)] != epochs[0]


def test_an_item_is_a_function_of_seed_and_index(shards: Path, tmp_path: Path) -> None:
    forward = [dataset(shards, tmp_path)[i] for i in range(9)]
    again = dataset(shards, tmp_path)
    backward = [again[i] for i in reversed(range(9))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not any(same(a, again[7 + i]) for i, a in enumerate(forward))
    assert not any(same(a, dataset(shards, tmp_path, seed=1)[i]) for i, a in enumerate(forward))


def test_a_stopped_run_goes_on_at_the_exact_clip_with_any_workers(shards: Path, tmp_path: Path) -> None:
    """The batches of an uninterrupted run of two epochs, and those of one that was stopped after its fourth."""
    items = dataset(shards, tmp_path)
    whole = list(DataLoader(items, batch_size=2, sampler=ClipOrder(14)))
    resumed = list(DataLoader(dataset(shards, tmp_path), batch_size=2, sampler=ClipOrder(14, done=8), num_workers=2))
    assert len(whole) == 7 and len(resumed) == 3
    assert all(same(a, b) for a, b in zip(whole[4:], resumed, strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"g": "4", "bf": "0"}, {"g": "5", "x264-params": "open-gop=1"}],
    ids=["one-gop", "short-gops", "open-gops"],
)
def test_only_the_frames_asked_for_and_exactly_those(options: dict[str, str], tmp_path: Path) -> None:
    data = clip_bytes(3, frames=23, **options)
    (tmp_path / "v.mp4").write_bytes(data)
    every = read_video(tmp_path / "v.mp4")
    with EncodedVideo(data, "v") as video:
        assert len(video) == len(every) == 23
        for times in (slice(0, 5), slice(17, 23, 3), slice(9, 20, 2), slice(22, 23), slice(4, 5), slice(0, 23)):
            difference = video[times].astype(int) - every[times]
            assert np.abs(difference).max() <= 1  # 8 bits against 16 on the way to RGB
            assert np.abs(difference).mean() < 0.02


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx265", {"x265-params": "log-level=none:keyint=6:open-gop=1"}),
        ("avi", "mpeg4", {"qmin": "2", "qmax": "2", "bf": "2", "g": "6"}),
        ("ts", "libx264", {"crf": "8", "g": "6"}),
        ("mpg", "mpeg2video", {"qmin": "2", "qmax": "2", "bf": "2", "g": "6"}),
    ],
)
def test_a_good_clip_is_read_where_seeking_loses_frames(
    suffix: str, codec: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Frames that follow a key frame and need those before it, and formats that no key frame is found in."""
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.thread_count = 1
        for index in range(20):
            still = np.ascontiguousarray(picture(64, 120, 0)[:, 2 * index : 2 * index + 64])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(still, format="rgb24")))
        container.mux(stream.encode(None))
    every = read_video(path)
    for start in range(17):
        with EncodedVideo(path.read_bytes(), "v") as video:
            difference = video[start : start + 3].astype(int) - every[start : start + 3]
            assert np.abs(difference).mean() < 0.1


def test_a_video_that_is_turned_or_stretched_is_set_right(tmp_path: Path) -> None:
    for name, prepare in (
        ("turned", lambda stream: stream.set_display_rotation(90)),
        ("stretched", lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", 2)),
    ):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
            stream.height, stream.width, stream.pix_fmt = 48, 80, "yuv420p"
            prepare(stream)
            frame = av.VideoFrame.from_ndarray(picture(48, 80, 0), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        (tmp_path / f"{name}.mp4").write_bytes(buffer.getvalue())
        reference = read_video(tmp_path / f"{name}.mp4")
        assert reference.shape[1:3] in {(80, 48), (48, 160)}
        with EncodedVideo(buffer.getvalue(), name) as video:
            assert np.array_equal(video[:1], reference)


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt", "options"),
    [
        ("webm", "libvpx-vp9", "yuv420p", {"crf": "4", "b": "0", "cpu-used": "8"}),
        ("mp4", "libsvtav1", "yuv420p", {"crf": "8", "preset": "10"}),
        ("mov", "prores_ks", "yuv422p10le", {}),
    ],
)
def test_colour_lies_where_it_does_in_a_folder_of_clips(
    suffix: str, codec: str, pix_fmt: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Of codecs whose chroma is on the left, which no frame says."""
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 96, 128, pix_fmt
        for seed in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(96, 128, seed), format="rgb24")))
        container.mux(stream.encode(None))
    every = read_video(path)
    with EncodedVideo(path.read_bytes(), "v") as video:
        difference = np.abs(video[0:3].astype(int) - every)
    assert difference.max() <= 1


def test_names_and_keys_are_webdatasets_own(shards: Path, tmp_path: Path) -> None:
    """The library's own reader finds the same clips, captions and bytes."""
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    items = dataset(shards, tmp_path)
    assert [s["__key__"] for s in samples] == [s.key for s in items.samples]
    for theirs, ours in zip(samples, items.samples, strict=True):
        with ours.shard.open("rb") as file:
            file.seek(ours.video.start)
            assert file.read(ours.video.size) == theirs["mp4"]
        assert ("txt" in theirs) == (ours.caption is not None)
        assert json.loads(theirs["json"])["number"] == int(ours.key[-2:])


def test_bad_input_is_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere-000"):
        dataset(f"{tmp_path}/nowhere-{{000..002}}.tar", tmp_path)
    with pytest.raises(UserError, match="no clip"):
        dataset(tmp_path, tmp_path)
    with pytest.raises(UserError, match="starts no command"):
        dataset("pipe:touch /tmp/x", tmp_path)
    with pytest.raises(UserError, match="max_strid"):
        dataset(shards, tmp_path, max_strid=3)
    with pytest.raises(UserError, match="100 clips in a row"):
        dataset(shards, tmp_path, frames=50)[0]
    with pytest.raises(IndexError):
        dataset(shards, tmp_path)[-1]
    assert expand(f"{shards}/clips-00{{0,2}}.tar") == [f"{shards}/clips-000.tar", f"{shards}/clips-002.tar"]
