"""The cache of decoded frames: full disks, damaged headers, open files, and which files and captions are found."""

from __future__ import annotations

import logging
import os
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import cv2
import numpy as np
import pytest

import data.cache
import data.clips
from data.cache import CacheError, FrameCache, find_sources, headers_only, read_caption
from data.clips import ClipDataset
from data.pairs import PairDataset
from ldm_video.core.errors import UserError
from tests.fork_support import forks


def write_photos(folder: Path, names: list[str], side: int = 120) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        picture = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / name), picture)
    return folder


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """As on a disk on which no more is left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_more_than_a_few_maps_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps a file open, and a process may have about a thousand."""
    monkeypatch.setattr(data.clips, "_OPEN_ARRAYS", 3)
    photos = write_photos(tmp_path / "photos", [f"{number}.png" for number in range(12)])
    items = ClipDataset(photos, cache=tmp_path / "cache", frames=1, size=64, degrade="clean")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    seen = {items[index]["name"] for index in range(40)}
    assert len(seen) > 8
    assert len(items._open_arrays) == 3
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def _ask_at_once(video: Path, folder: Path, begin: Barrier, slept: float) -> None:
    """Ask for a clip that takes long to decode, and write a line for each decoding."""

    def read(path: Path, max_frames: int) -> np.ndarray:
        with (folder / "decoded.txt").open("a") as file:
            file.write(f"{path}\n")
        time.sleep(slept)
        return np.full((2, 4, 4, 3), 7, np.uint8)

    data.cache.read_video = read
    begin.wait(60)
    assert FrameCache(folder / "cache").frames(video).min() == 7


def test_processes_that_start_together_decode_a_source_once(tmp_path: Path) -> None:
    video, begin = tmp_path / "a.mp4", forks.Barrier(2)
    video.touch()
    asking = [forks.Process(target=_ask_at_once, args=(video, tmp_path, begin, 0.5)) for _ in range(2)]
    for process in asking:
        process.start()
    for process in asking:
        process.join(120)
    assert [process.exitcode for process in asking] == [0, 0]
    assert (tmp_path / "decoded.txt").read_text() == f"{video}\n"
    (entry,) = (tmp_path / "cache").iterdir()  # no lock stays
    assert entry.suffix == ".npy"


def test_a_source_that_one_process_fails_to_decode_is_the_next_one_s(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache")
    (tmp_path / "a.png").touch()
    for _ in range(2):
        with pytest.raises(UserError, match=r"a\.png cannot be decoded") as caught:
            cache.frames(tmp_path / "a.png")
        assert not isinstance(caught.value, CacheError)
    assert not list((tmp_path / "cache").iterdir())
    write_photos(tmp_path, ["a.png"])
    assert cache.frames(tmp_path / "a.png").shape == (1, 120, 120, 3)


def test_a_full_disk_ends_the_run_and_names_the_cache(tmp_path: Path) -> None:
    """The large picture is no bad source, and is not trained without."""
    photos = write_photos(tmp_path / "photos", ["small.png"])
    write_photos(photos, ["large.png"], 400)
    with no_file_beyond(200_000), pytest.raises(CacheError, match="no space left") as caught:
        ClipDataset(photos, cache=tmp_path / "cache", frames=1, size=64)
    assert f"the cache of decoded frames {tmp_path / 'cache'} cannot be used" in str(caught.value)
    assert not list((tmp_path / "cache").glob("large*"))
    assert len(ClipDataset(photos, cache=tmp_path / "cache", frames=1, size=64).sources) == 2


def test_a_cache_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", ["a.png"])
    for part in ("hr", "lr"):
        write_photos(tmp_path / "pairs" / part, ["a.png"], 96)
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="file/cache cannot be used"):
        ClipDataset(photos, cache=tmp_path / "file" / "cache", frames=1, size=64)
    with pytest.raises(CacheError, match="file/cache cannot be used"):
        PairDataset(tmp_path / "pairs", cache=tmp_path / "file" / "cache", frames=1, size=64, scale=1)


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    cache, photos = FrameCache(tmp_path / "cache"), write_photos(tmp_path, ["a.png"])
    frames = np.array(cache.frames(photos / "a.png"))
    assert np.array_equal(frames[0], cv2.imread(str(photos / "a.png"))[..., ::-1])
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_bytes(entry.read_bytes()[:1000])
    with pytest.raises(CacheError, match=entry.name):
        cache.frames(photos / "a.png")


def test_a_picture_that_says_it_is_enormous_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """OpenCV raises where for other damage it returns nothing."""
    photos = write_photos(tmp_path / "photos", ["a.png"])
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99)))
    with (photos / "huge.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in (*chunks, (b"IEND", b"")):
            file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    with caplog.at_level(logging.WARNING):
        items = ClipDataset(photos, cache=tmp_path / "cache", frames=1, size=64)
    assert [path.name for path in items.sources] == ["a.png"]
    assert "huge.png cannot be decoded as a picture" in caplog.text


def test_pictures_of_any_depth_become_the_nearest_levels(tmp_path: Path) -> None:
    """TIFF holds floats, which scanners and renderers write; 16 bits are rounded, not cut off."""
    values = np.random.default_rng(0).random((40, 60, 3)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "floats.tif"), values[..., ::-1])
    cv2.imwrite(str(tmp_path / "deep.png"), np.round(values * 65535).astype(np.uint16)[..., ::-1])
    cache = FrameCache(tmp_path / "cache")
    for name in ("floats.tif", "deep.png"):
        assert np.abs(cache.frames(tmp_path / name)[0] - 255 * values).max() < 0.51


def test_training_finds_what_infer_reads(tmp_path: Path) -> None:
    for name in ("a.MTS", "b.vob", "c.wmv", "d.tif", "e.txt", ".f.mp4"):
        (tmp_path / name).touch()
    assert [path.name for path in find_sources(tmp_path)] == ["a.MTS", "b.vob", "c.wmv", "d.tif"]


def test_hidden_folders_are_left_out_as_infer_leaves_them(tmp_path: Path) -> None:
    """Thumbnails, what was thrown away, clips that `data.prepare` has not packed yet; not a root that is hidden."""
    root = tmp_path / ".films"
    for name in ("a.mp4", "reels/b.mp4", ".Trash/c.mp4", "reels/.thumbnails/small/d.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert find_sources(root) == [root / "a.mp4", root / "reels/b.mp4"]


def test_captions_of_folders_keep_what_follows_a_dot(tmp_path: Path) -> None:
    for name in ("take.1", "take.2"):
        (tmp_path / name).mkdir()
    (tmp_path / "take.1.txt").write_text("one\n")
    (tmp_path / "take.txt").write_text("another")
    assert [read_caption(tmp_path / name) for name in ("take.1", "take.2", "take.mp4")] == ["one", "", "another"]


def test_a_caption_begins_with_its_first_word(tmp_path: Path) -> None:
    """Windows' editors write U+FEFF before it, which is no space: a text encoder would read tokens of it."""
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.txt").write_bytes(mark + "a harbour, Café\r\n".encode())
        assert read_caption(tmp_path / "a.mp4") == "a harbour, Café"


def test_frames_that_change_places_are_decoded_again(tmp_path: Path) -> None:
    folder, cache = write_photos(tmp_path / "frames", ["0.png", "1.png"]), FrameCache(tmp_path / "cache")
    before = np.array(cache.frames(folder))
    for old, new in (("0.png", "x"), ("1.png", "0.png"), ("x", "1.png")):
        (folder / old).rename(folder / new)
    assert np.array_equal(cache.frames(folder), before[::-1])


def test_two_entries_of_one_name_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("hr", "lr"):
        write_photos(tmp_path / part, ["a.png", "b.bmp", "c.tif"], 96)
    write_photos(tmp_path / "lr", ["a.jpg"], 96)
    with caplog.at_level(logging.WARNING):
        items = PairDataset(tmp_path, cache=tmp_path / "cache", frames=1, size=64, scale=1)
    assert [pair.hr.name for pair in items.pairs] == ["b.bmp", "c.tif"]
    assert f"{tmp_path}/lr/a.jpg and {tmp_path}/lr/a.png have one name" in caplog.text


def test_a_missing_source_is_no_fault_of_the_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.mp4") as caught:
        FrameCache(tmp_path).frames(tmp_path / "gone.mp4")
    assert not isinstance(caught.value, CacheError)


def test_a_look_at_the_headers_decodes_and_writes_nothing(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    video = write_video(tmp_path / "clips" / "a.mp4", frames=6, size=(112, 128))
    photo = tmp_path / "clips" / "b.png"
    cv2.imwrite(str(photo), np.zeros((80, 60, 3), np.uint8))
    cache = FrameCache(tmp_path / "cache", max_frames=4)
    with headers_only():
        assert cache.frames(video).shape == (4, 112, 128, 3)
        assert cache.frames(photo).shape == (1, 80, 60, 3)
        options = {"root": tmp_path / "clips", "cache": tmp_path / "cache", "size": 64}
        assert [path.name for path in ClipDataset(**options, frames=5).sources] == ["a.mp4"]
        with pytest.raises(UserError, match="no usable video"):
            ClipDataset(**options, frames=7)
        with pytest.raises(UserError, match="no usable video"):
            ClipDataset(**options | {"size": 96})
    assert not (tmp_path / "cache").exists()
    assert cache.frames(video).any() and cache.entry(video).is_file()
