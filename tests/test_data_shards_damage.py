"""Damaged shards and clips: what is whole is kept, what is not is passed over or named."""

from __future__ import annotations

import io
import logging
import tarfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import pytest
import webdataset
from torch.utils.data import DataLoader

from data.shards import index_shard
from tests.data_support import same
from tests.shards_support import clip_bytes, dataset, picture, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of three, three and one clips; every second clip has a caption."""
    return write_shards(tmp_path_factory)


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
