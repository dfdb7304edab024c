"""Tar shards: purity, resume, exact frames, damaged shards and clips, captions, remote shards."""

from __future__ import annotations

import errno
import functools
import http.server
import io
import json
import logging
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import fsspec
import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from data.cache import headers_only, read_video
from data.encoded import EncodedVideo
from data.shards import ShardDataset, expand, index_shard, local_copy
from ldm_video.core.errors import UserError
from ldm_video.training.order import ClipOrder
from tests.data_support import same


def picture(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def clip_bytes(seed: int, frames: int = 10, size: tuple[int, int] = (110, 140), **options: str) -> bytes:
    """H.264 in MP4: a picture that moves 2 pixels a frame; B-frames and far key frames unless said otherwise."""
    buffer, still = io.BytesIO(), picture(size[0], size[1] + 2 * frames, seed)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4", "preset": "veryfast", **options})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1  # BT.709, limited
        for index in range(frames):
            view = np.ascontiguousarray(still[:, 2 * index : 2 * index + size[1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of three, three and one clips; every second clip has a caption."""
    folder = tmp_path_factory.mktemp("shards")
    with webdataset.ShardWriter(str(folder / "clips-%03d.tar"), maxcount=3, verbose=0, mtime=0) as writer:
        for number in range(7):
            sample = {"__key__": f"film/{number:02d}", "mp4": clip_bytes(number), "json": {"number": number}}
            writer.write(sample | ({"txt": f"picture {number}\n"} if number % 2 else {}))
    return folder


def dataset(root: Path | str, folder: Path, **options: object) -> ShardDataset:
    defaults = {"frames": 3, "size": 64, "cache": folder / "cache"}
    return ShardDataset(root, **{**defaults, **options})  # type: ignore[arg-type]


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


def test_a_clip_that_changes_its_size_is_passed_over(shards: Path, tmp_path: Path) -> None:
    """As recordings of broadcasts do; `data.prepare` fits such frames to the first ones."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 110, 140, "yuv420p"
        for begins, (height, width) in ((0, (110, 140)), (3, (120, 160))):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width, encoder.pix_fmt, encoder.max_b_frames = height, width, "yuv420p", 0
            encoder.framerate, encoder.time_base = Fraction(25), Fraction(1, 25)
            for index in range(begins, begins + 3):
                frame = av.VideoFrame.from_ndarray(picture(height, width, index), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
            for packet in encoder.encode(None):
                packet.stream = stream
                container.mux(packet)
    with webdataset.TarWriter(str(tmp_path / "clips.tar")) as tar:
        tar.write({"__key__": "changes", "ts": buffer.getvalue()})
        tar.write({"__key__": "good", "mp4": clip_bytes(0)})
    items = dataset(tmp_path, tmp_path, frames=6)
    assert {items[0]["name"], items[1]["name"]} == {"good"}
    assert items.skipped == 1


def test_a_shard_cut_in_half_keeps_whole_clips(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, _ = index_shard(shards / "clips-000.tar", tmp_path)
    content = (shards / "clips-000.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(content[: whole[1].video.start + whole[1].video.size // 2])
    (tmp_path / "junk.tar").write_bytes(b"no tar file " * 300)
    with caplog.at_level(logging.WARNING):
        items = dataset(tmp_path, tmp_path)
    assert [sample.key for sample in items.samples] == ["film/00"]
    assert items.damaged == 2
    assert "2 damaged shards" in caplog.text and "cut.tar" in caplog.text and "junk.tar" in caplog.text
    assert items[0]["name"] == "film/00"
    again = dataset(tmp_path, tmp_path)  # from the index
    assert again.damaged == 2
    assert again.samples == items.samples


def test_the_clip_that_a_cut_goes_through_is_left_out_wherever_it_goes(shards: Path, tmp_path: Path) -> None:
    """At each byte that could matter: keys before the cut clip, whole; never part of one."""
    content = (shards / "clips-000.tar").read_bytes()
    with tarfile.open(shards / "clips-000.tar") as tar:
        ends = [(m.name.split(".")[0], m.offset, m.offset_data, m.offset_data + m.size) for m in tar]
    for name, header, start, end in ends:
        for length in (header + 100, start, end - 1):
            path = tmp_path / f"{length}.tar"
            path.write_bytes(content[:length])
            keys = [sample.key for sample in index_shard(path, tmp_path)[0]]
            assert name not in keys or length == header + 100  # a header that is cut is the end of the clip before
            assert keys == sorted({key for key, *_ in ends})[: len(keys)]


def test_a_shard_with_a_damaged_header_or_without_an_end_is_named(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (shards / "clips-000.tar").read_bytes()
    with tarfile.open(shards / "clips-000.tar") as tar:
        headers = {member.name.split(".")[0]: member.offset for member in reversed(tar.getmembers())}
    at = headers["film/01"]  # its first member's
    (tmp_path / "rotten.tar").write_bytes(content[:at] + b"\x99" * 100 + content[at + 100 :])
    (tmp_path / "short.tar").write_bytes(content[:at])
    (tmp_path / "shorter.tar").write_bytes(content[: at + 100])
    with caplog.at_level(logging.WARNING):
        items = dataset(tmp_path, tmp_path)
    assert [sample.key for sample in items.samples] == 3 * ["film/00"]
    assert items.damaged == 3 and "rotten.tar" in caplog.text
    assert dataset(shards, tmp_path).damaged == 0


def test_broken_clips_are_passed_over_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, empty = clip_bytes(0), io.BytesIO()
    with av.open(empty, "w", format="mp4") as container:  # a video with zero frames
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 110, 140, "yuv420p"
        container.start_encoding()
    broken = {
        "empty": empty.getvalue(),
        "nothing": b"",
        "junk": b"this is no video" * 100,
        "half": good[: len(good) // 2],
        "small": clip_bytes(1, size=(50, 140)),
        "short": clip_bytes(2, frames=2),
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
    }
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        for key, data in (broken | {"good": good}).items():
            tar.write({"__key__": key, "mp4": data})
    items = dataset(tmp_path, tmp_path)
    with caplog.at_level(logging.WARNING):
        made = [items[index] for index in range(16)]
    assert {item["name"] for item in made} == {"good"}
    assert items.skipped >= 2 * len(broken)
    assert f"{items.skipped} so far" in caplog.records[-1].getMessage()
    assert all(any(f"clip {key} of" in message for message in caplog.messages) for key in broken)
    alone = dataset(tmp_path, tmp_path)
    assert same(made[11], alone[11])  # what takes a broken clip's place does not depend on what came before


def test_workers_count_together(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        for key, data in (("bad", b"junk"), ("good", clip_bytes(0)), ("fine", clip_bytes(1))):
            tar.write({"__key__": key, "mp4": data})
    items = dataset(tmp_path, tmp_path)
    alone = Counter(item["name"] for item in (dataset(tmp_path, tmp_path)[i] for i in range(12)))
    names = Counter(item["name"] for item in DataLoader(items, batch_size=None, sampler=range(12), num_workers=2))
    assert names == alone
    assert items.skipped >= 4  # the bad one's turn comes once an epoch


class Quiet(http.server.SimpleHTTPRequestHandler):
    requested: list[str]

    def do_GET(self) -> None:
        self.requested.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[tuple[str, list[str]]]:
    requested: list[str] = []
    handler = functools.partial(type("Handler", (Quiet,), {"requested": requested}), directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", requested
        running.shutdown()
        thread.join()


def test_remote_shards_are_fetched_once(server: tuple[str, list[str]], shards: Path, tmp_path: Path) -> None:
    url, requested = server
    remote = dataset(url + "/clips-{000..001}.tar", tmp_path)
    local = dataset(f"{shards}/clips-{{000..001}}.tar", tmp_path)
    assert all(same(remote[i], local[i]) for i in range(6))
    assert sorted(requested) == ["/clips-000.tar", "/clips-001.tar"]
    dataset(url + "/clips-{000..001}.tar", tmp_path)
    assert len(requested) == 2
    with pytest.raises(UserError, match=r"clips-009\.tar"):
        dataset(url + "/clips-009.tar", tmp_path)
    assert not list((tmp_path / "cache" / "shards").glob("*clips-009.tar"))


def test_a_look_fetches_and_writes_nothing(server: tuple[str, list[str]], shards: Path, tmp_path: Path) -> None:
    address, asked = server
    folder = tmp_path / "cache"
    with headers_only():
        local = dataset(shards, folder)
        dataset(f"{address}/clips-{{000..001}}.tar", folder)
        with pytest.raises(UserError, match="does not exist"):
            dataset(tmp_path / "none.tar", folder)
    assert 0 < len(local.samples) <= len(dataset(shards, tmp_path / "other").samples)
    assert asked == [] and not folder.exists()


def test_copies_are_made_without_locks_and_read_without_writing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some shared disks have no locks; and who only reads a cache may not be allowed to make a lock in it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    url = "memory://of-locks.tar"
    fsspec.filesystem("memory").pipe("/of-locks.tar", (shards / "clips-000.tar").read_bytes())
    copy = local_copy(url, tmp_path / "new" / "cache")
    assert copy.read_bytes() == (shards / "clips-000.tar").read_bytes()
    monkeypatch.setattr("data.shards.first_to_make", refuse)
    assert local_copy(url, tmp_path / "new" / "cache") == copy
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the cache of shards .*file/cache cannot be used"):
        local_copy(url, tmp_path / "file" / "cache")


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
