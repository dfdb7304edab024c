"""The dataset: decoding, determinism, no leak from the hole, bad input."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.cache import FrameCache
from data.clips import ClipDataset, ClipStream, make_pair
from data.degrade import PRESETS
from data.motion import photo_clip
from data.paint import paint_hole
from ldm_video.core.errors import UserError
from tests.data_support import same


def texture(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 6, width // 6, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_video(path: Path, frames: np.ndarray, pix_fmt: str = "rgb24", colorspace: int | None = None) -> Path:
    """H.264 from ``t h w c`` RGB, or from the planes of ``yuv444p`` frames, near lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3] if pix_fmt == "rgb24" else frames.shape[2:4]
        stream.pix_fmt = "yuv420p" if pix_fmt == "rgb24" else pix_fmt
        stream.options = {"crf": "1", "preset": "ultrafast"}
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=pix_fmt)))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    (root / "deep").mkdir()
    for name, seed in (("a.mp4", 0), ("deep/b.mp4", 1)):
        picture = texture(110, 180, seed)
        write_video(root / name, np.stack([np.roll(picture, 2 * i, axis=1)[:, :150] for i in range(9)]))
    cv2.imwrite(str(root / "photo.png"), texture(160, 200, 2))
    return root


def dataset(folder: Path, **options: object) -> ClipDataset:
    defaults = {"frames": 3, "size": 64, "cache": folder / ".cache", "length": 24}
    return ClipDataset(folder, **{**defaults, **options})  # type: ignore[arg-type]


def test_items_have_the_stated_shapes_and_ranges(folder: Path) -> None:
    items = dataset(folder, size=(48, 64))
    names = set()
    for index in range(len(items)):
        item = items[index]
        assert item["hr"].shape == (3, 3, 48, 64)
        assert item["lr"].shape == (3, 3, 12, 16)
        assert item["hole"].shape == (3, 1, 48, 64)
        assert {item[k].dtype for k in ("hr", "lr", "hole")} == {torch.float32}
        assert max(item["hr"].abs().max(), item["lr"].abs().max()) <= 1
        assert set(item["hole"].unique().tolist()) <= {0.0, 1.0}
        names.add(item["name"])
    assert names == {"a.mp4", "b.mp4", "photo.png"}


def test_the_low_res_frames_show_the_same_window(folder: Path) -> None:
    """Without a hole the clean low-res clip is the high-res one made smaller, away from the crop's rim."""
    for scale in (2, 3, 4):
        items = dataset(folder, size=48, scale=scale, degrade="clean", masks={"empty": 1})
        for index in range(8):
            item = items[index]
            size = (48 // scale, 48 // scale)
            small = torch.nn.functional.interpolate(item["hr"], size=size, mode="bicubic", antialias=True)
            inner = (..., slice(2, -2), slice(2, -2))
            assert (small[inner].clamp(-1, 1) - item["lr"][inner]).abs().max() < 1.5 / 127.5


def test_an_item_is_a_function_of_seed_and_index(folder: Path) -> None:
    first, again = dataset(folder), dataset(folder)
    forward = [first[i] for i in range(8)]
    backward = [again[i] for i in reversed(range(8))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not any(same(a, again[24 + i]) for i, a in enumerate(forward))  # a second pass draws anew
    assert not any(same(a, dataset(folder, seed=1)[i]) for i, a in enumerate(forward))


def test_workers_do_not_change_items(folder: Path) -> None:
    items = dataset(folder, length=6)
    alone = [items[i] for i in range(6)]
    loader = DataLoader(items, batch_size=None, num_workers=2)
    assert all(same(a, b) for a, b in zip(alone, loader, strict=True))


def test_low_res_frames_may_be_averaged_along_the_motion(folder: Path) -> None:
    plain, averaged = (dataset(folder, size=96, masks={"blob": 1}, average=average) for average in (0, 3))
    changed = 0
    for one, two in ((plain[i], averaged[i]) for i in range(12)):
        assert all(torch.equal(one[key], two[key]) for key in ("hr", "hole"))
        under = torch.nn.functional.adaptive_max_pool2d(one["hole"], one["lr"].shape[-2:]).bool().expand_as(one["lr"])
        assert torch.equal(one["lr"][under], two["lr"][under])
        changed += not torch.equal(one["lr"], two["lr"])
        assert (one["lr"] - two["lr"]).abs().mean() < 0.05
    assert 4 <= changed < 12  # a reach of 0 is drawn as well


def test_nothing_in_the_hole_reaches_the_low_res_clip() -> None:
    """Two clips that differ in the hole alone, and wildly, give the same low-res clip; the hole touches the rim."""
    rng = np.random.default_rng(0)
    clip = np.stack([texture(96, 96, 0)] * 3)
    mask = np.zeros((3, 1, 64, 64), np.float32)
    mask[:, :, 20:64, 30:64] = 1
    other = clip.copy()
    other[:, 36:, 46:] = rng.integers(0, 256, other[:, 36:, 46:].shape)  # the hole and its continuation outside
    for seed in range(10):
        one, two = (make_pair(c, mask, 16, 4, PRESETS["sd"], np.random.default_rng(seed)) for c in (clip, other))
        assert not torch.equal(one["hr"], two["hr"])
        assert torch.equal(one["lr"], two["lr"])
        assert torch.equal(one["hole"], two["hole"])
    assert torch.equal(one["hr"][..., :20, :], two["hr"][..., :20, :])


def test_paint_covers_the_hole_and_nothing_else() -> None:
    clip = np.stack([texture(40, 60, 0)] * 2)
    hole = np.zeros((2, 40, 60), np.float32)
    hole[:, 10:30, 15:40] = 1
    looks = set()
    for seed in range(20):
        painted, on_black = (paint_hole(c, hole, np.random.default_rng(seed)) for c in (clip, np.zeros_like(clip)))
        assert np.array_equal(painted[hole == 0], clip[hole == 0])
        assert np.array_equal(painted[hole == 1], on_black[hole == 1])
        looks.add(len(np.unique(painted[hole == 1], axis=0)) > 2)
    assert looks == {True, False}


def test_a_clip_may_be_one_frame(folder: Path) -> None:
    items = dataset(folder, frames=1)
    assert all(items[index]["hr"].shape == (1, 3, 64, 64) for index in range(12))  # turned round as well


def test_a_scale_may_be_a_fraction(folder: Path) -> None:
    items = dataset(folder, size=60, scale=2.5, degrade="clean", masks={"empty": 1})
    for index in range(6):
        item = items[index]
        assert item["lr"].shape == (3, 3, 24, 24)
        small = torch.nn.functional.interpolate(item["hr"], size=(24, 24), mode="bicubic", antialias=True)
        inner = (..., slice(2, -2), slice(2, -2))
        assert (small[inner].clamp(-1, 1) - item["lr"][inner]).abs().max() < 1.5 / 127.5
    with pytest.raises(UserError, match="multiple of 5"):
        dataset(folder, size=64, scale=2.5)


def test_captions_stand_beside_their_files(folder: Path) -> None:
    (folder / "deep" / "b.txt").write_text(" stripes that go left\n", encoding="utf-8")
    items = dataset(folder)
    captions = {item["name"]: item["caption"] for item in map(items.__getitem__, range(24))}
    assert captions == {"a.mp4": "", "b.mp4": "stripes that go left", "photo.png": ""}
    (folder / "deep" / "b.txt").unlink()


def test_holes_may_be_objects_from_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for index in range(4):
        mask = np.zeros((90, 120), np.uint8)
        cv2.circle(mask, (40 + 5 * index, 45), 20, 255, -1)
        cv2.imwrite(str(tmp_path / "cat" / f"{index:05d}.png"), mask)
    items = dataset(folder, objects=tmp_path, masks={"object": 1})
    assert any(0 < items[index]["hole"].mean() < 1 for index in range(4))
    with pytest.raises(UserError, match="object"):
        dataset(folder, masks={"object": 1})


def test_photos_keep_their_share(folder: Path) -> None:
    items = dataset(folder, photo_share=0.25)
    photo = [path.suffix == ".png" for path in items.sources]
    assert items.shares[photo].sum() == pytest.approx(0.25)
    assert items.shares.sum() == pytest.approx(1)


def test_a_camera_over_a_photo_moves_smoothly_and_stays_on_it() -> None:
    """A photo whose colour is its coordinate tells where each output pixel came from."""
    height, width = 240, 250
    y, x = np.mgrid[:height, :width]
    photo = np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8)
    rows, columns = np.mgrid[:64, :80]
    design = np.stack([columns.ravel(), rows.ravel(), np.ones(64 * 80)], -1)
    travelled = []
    for seed in range(12):
        clip = photo_clip(photo, 10, (64, 80), np.random.default_rng(seed)).astype(float)
        assert np.all(clip[..., 2] == 90)
        affine = []
        for frame in clip:
            solution, *_ = np.linalg.lstsq(design, frame[..., :2].reshape(-1, 2), rcond=None)
            # A pixel beyond the photo would repeat its edge and break the affine law.
            assert np.abs(design @ solution - frame[..., :2].reshape(-1, 2)).max() < 2.5
            affine.append(solution)
        (a, b), (c, d) = np.array(affine)[:, :2].mean(0)
        assert abs(a - d) < 0.05 and abs(b + c) < 0.05  # a similarity: no stretch, no shear
        assert np.hypot(a, b) > 0.9  # never blown up where the photo is large enough
        centres = np.array([[40, 32, 1] @ s for s in affine])
        travelled.append(np.linalg.norm(centres[-1] - centres[0]))
        assert np.abs(np.diff(centres, 2, axis=0)).max() < 6
    assert max(travelled) > 5


@pytest.mark.parametrize(("size", "most", "largest"), [((300, 300), 2, 2), ((300, 300), 1, 1), ((120, 300), 2, 1.25)])
def test_videos_are_shrunk_by_up_to_the_given_factor(size: tuple[int, int], most: float, largest: float) -> None:
    """Told by frames whose colours are their coordinates; 96x96 are cut out, of 120 rows at most by 120 / 96."""
    y, x = np.mgrid[: size[0], : size[1]]
    clip = np.stack([x, y, x + y], -1).astype(np.float32)[None]  # bytes end at 255
    stream = ClipStream(size=64, max_shrink=most)
    slopes = []
    for seed in range(40):
        cut = stream.cut_video(clip, np.random.default_rng(seed))
        assert cut.shape == (1, 96, 96, 3)
        across, down = np.diff(cut[0, ..., 0], axis=1), np.diff(cut[0, ..., 1], axis=0)
        slopes.append(float(across.mean()))
        assert down.mean() == pytest.approx(slopes[-1], abs=1e-3)
        for steps in (across, down):  # everywhere the same, but that OpenCV's areas are a tenth of a pixel off
            np.testing.assert_allclose(steps, slopes[-1], atol=0.2)
    assert min(slopes) >= 1 and max(slopes) <= largest
    assert min(slopes) <= 1 + 0.2 * (largest - 1) and max(slopes) >= 1 + 0.8 * (largest - 1)


@pytest.mark.parametrize(
    ("tag", "height", "kr", "kb"),
    [(1, 64, 0.2126, 0.0722), (5, 64, 0.299, 0.114), (2, 64, 0.299, 0.114), (2, 720, 0.2126, 0.0722)],
)
def test_decoding_follows_the_matrix(tmp_path: Path, tag: int, height: int, kr: float, kb: float) -> None:
    yuv = np.empty((2, 3, height, 64), np.uint8)
    yuv[:] = np.array([120, 100, 160], np.uint8)[:, None, None]
    frames = FrameCache(tmp_path / "c").frames(write_video(tmp_path / "v.mp4", yuv, "yuv444p", tag))
    luma, cb, cr = (120 - 16) / 219, (100 - 128) / 224, (160 - 128) / 224
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    assert np.abs(frames.reshape(-1, 3) - 255 * np.array([red, green, blue])).max() <= 1.5


def test_the_cache_decodes_once_and_notices_a_change(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache", max_frames=4)
    path = write_video(tmp_path / "v.mp4", np.stack([texture(48, 60, s) for s in range(6)]))
    frames = cache.frames(path)
    assert frames.shape == (4, 48, 60, 3)
    assert isinstance(frames, np.memmap) and not frames.flags.writeable
    (entry,) = (tmp_path / "cache").iterdir()
    written = entry.stat().st_mtime_ns
    assert np.array_equal(cache.frames(path), frames)
    assert entry.stat().st_mtime_ns == written
    assert FrameCache(tmp_path / "cache").frames(path).shape[0] == 6
    write_video(path, np.zeros((2, 48, 60, 3), np.uint8))
    os.utime(path, ns=(1, 1))
    assert cache.frames(path).shape[0] == 2


def test_a_damaged_file_is_left_out_with_one_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"this is no video" * 50)
    (tmp_path / "broken.jpg").write_bytes(b"nor a picture")
    cv2.imwrite(str(tmp_path / "tiny.png"), texture(40, 40, 0))
    write_video(tmp_path / "short.mp4", np.stack([texture(110, 150, 0)] * 2))
    with av.open(str(tmp_path / "zero.mp4"), "w") as container:  # a video with zero frames
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 110, 150, "yuv420p"
        container.start_encoding()
    with caplog.at_level(logging.WARNING):
        items = ClipDataset([folder, tmp_path], frames=3, size=64, cache=folder / ".cache")
    assert len(items.sources) == 3
    (record,) = caplog.records
    message = record.getMessage()
    assert "5 of 8" in message
    assert all(name in message for name in ("broken.mp4", "broken.jpg", "tiny.png", "short.mp4", "zero.mp4"))


def test_bad_input_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no usable video or photo"):
        dataset(tmp_path)
    with pytest.raises(UserError, match="multiple"):
        dataset(folder, size=66)
    with pytest.raises(UserError, match="vhs"):
        dataset(folder, degrade="vhs")
    with pytest.raises(UserError, match="max_strid"):
        dataset(folder, max_strid=3)
    with pytest.raises(UserError, match="gone"):
        FrameCache(tmp_path).frames(tmp_path / "gone.mp4")
    with pytest.raises(IndexError):
        dataset(folder)[-1]
