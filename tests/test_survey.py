"""What one pass over a clip finds out: a mask is laid on the frames that are there, and never on their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from ldm_video.core.errors import UserError
from ldm_video.pipeline.job import Job, Watch, open_mask, read_pieces
from ldm_video.pipeline.plan import Segment
from ldm_video.pipeline.survey import take_survey
from ldm_video.video_io import probe
from tests.video_io_support import pan, write_clip

SIZE = (48, 64)
FRAMES = 20
LOST_INSIDE, LOST_FIRST, LOST_LAST = (5, 6, 12), (0,), (18, 19)


def damaged_mp4(path: Path, lost: Sequence[int]) -> Path:
    """MJPEG, every frame on its own: those that are ``lost`` are zeros."""
    pictures = [av.VideoFrame.from_ndarray((image * 255).astype(np.uint8), "rgb24") for image in pan(FRAMES, *SIZE)]
    write_clip(path, [picture.reformat(format="yuvj420p") for picture in pictures], codec="mjpeg")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.size]
    for packet in (packets[i] for i in lost):
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    return path


def dropped_avi(path: Path, lost: Sequence[int]) -> Path:
    """The slots of those that are ``lost`` are empty, as a capture leaves them that could not follow."""
    times = [i for i in range(FRAMES) if i not in lost]
    pictures = [av.VideoFrame.from_ndarray((image * 255).astype(np.uint8), "rgb24") for image in pan(FRAMES, *SIZE)]
    frames = [pictures[i].reformat(format="yuvj420p") for i in times]
    return write_clip(path, frames, codec="mjpeg", times=times)


def write_masks(folder: Path, count: int) -> Path:
    """Pictures, each with a white column at twice its number."""
    folder.mkdir()
    for i in range(count):
        picture = np.zeros(SIZE, np.uint8)
        picture[:, 2 * i : 2 * i + 2] = 255
        cv2.imwrite(str(folder / f"{i:03d}.png"), picture)
    return folder


def columns(clip: Path, masks: Path) -> list[int]:
    """Survey the clip, read it, and tell which mask each frame has."""
    info = probe(clip)
    job = Job(clip, clip.parent / "hd.mkv", info.size, mask=masks)
    with open_mask(job, info) as mask:
        frames = take_survey(info, mask, lambda frames: None, find_cuts=False).frames
    whole = Segment(0, 0, 0, frames, 0, frames, follows=False, leads=False, fades_in=False, fades_out=False)
    return [int(piece.hole[0, 0].nonzero()[0]) // 2 for piece in read_pieces(job, [whole], Watch())]


@pytest.mark.parametrize("lost", [LOST_INSIDE, LOST_FIRST, LOST_LAST])
@pytest.mark.parametrize(("make", "suffix"), [(damaged_mp4, ".mp4"), (damaged_mp4, ".avi"), (dropped_avi, ".avi")])
def test_a_mask_for_each_frame_that_decodes(
    tmp_path: Path, make: Callable[..., Path], suffix: str, lost: Sequence[int]
) -> None:
    clip, there = make(tmp_path / f"sd{suffix}", lost), FRAMES - len(lost)
    assert columns(clip, write_masks(tmp_path / "masks", there)) == list(range(there))


@pytest.mark.parametrize("lost", [LOST_INSIDE, LOST_FIRST])
@pytest.mark.parametrize(("make", "suffix"), [(damaged_mp4, ".mp4"), (damaged_mp4, ".avi"), (dropped_avi, ".avi")])
def test_a_mask_that_would_come_late_is_refused(
    tmp_path: Path, make: Callable[..., Path], suffix: str, lost: Sequence[int]
) -> None:
    clip = make(tmp_path / f"sd{suffix}", lost)
    assert probe(clip).frames == FRAMES
    with pytest.raises(UserError, match=f"has {FRAMES} frames but the clip has {FRAMES - len(lost)}"):
        columns(clip, write_masks(tmp_path / "masks", FRAMES))


def test_a_mask_may_go_on_where_the_clip_is_cut_short(tmp_path: Path) -> None:
    clip = damaged_mp4(tmp_path / "sd.mp4", LOST_LAST)
    assert columns(clip, write_masks(tmp_path / "masks", FRAMES)) == list(range(FRAMES - len(LOST_LAST)))


def test_a_mask_that_is_too_short_is_refused_with_the_true_lengths(tmp_path: Path) -> None:
    """The container promises as many frames as the mask has, and there are more."""
    clip = write_clip(tmp_path / "sd.mkv", pan(FRAMES, *SIZE), codec="ffv1")
    info = replace(probe(clip), frames=12)
    job = Job(clip, tmp_path / "hd.mkv", info.size, mask=write_masks(tmp_path / "masks", 12))
    with open_mask(job, info) as mask, pytest.raises(UserError, match=f"has 12 frames but the clip has {FRAMES};"):
        take_survey(info, mask, lambda frames: None)


@pytest.mark.parametrize("count", [FRAMES - 4, FRAMES - 2, FRAMES + 1])
def test_a_mask_of_any_other_length_is_refused_before_the_survey(tmp_path: Path, count: int) -> None:
    clip = damaged_mp4(tmp_path / "sd.mp4", LOST_INSIDE)
    masks, info = write_masks(tmp_path / "masks", count), probe(clip)
    with pytest.raises(UserError, match=f"has {count} frames but the clip has 17"):
        open_mask(Job(clip, tmp_path / "hd.mkv", info.size, mask=masks), info)


def hiding(path: Path, hidden: Sequence[int]) -> Path:
    """A clip whose left three quarters show another place from each of the frames ``hidden`` on."""
    images = [image.copy() for image in pan(FRAMES, *SIZE)]
    for i, image in enumerate(images):
        place = sum(i >= start for start in hidden)
        squares = np.random.default_rng(place).random((12, 12, 3)) ** (place + 1)
        image[:, :48] = squares.repeat(4, axis=0).repeat(4, axis=1)
    return write_clip(path, images, codec="ffv1")


@pytest.mark.parametrize("moving", [False, True])
def test_what_a_mask_hides_begins_no_shot(tmp_path: Path, moving: bool) -> None:
    picture = np.zeros(SIZE, np.uint8)
    picture[:, :50] = 255  # chroma is half as fine
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(FRAMES if moving else 1):
        picture[:, 50 + i % 3] = 255
        cv2.imwrite(str(masks / f"{i:03d}.png"), picture)
    clip = hiding(tmp_path / "sd.mkv", [6, 11])
    info = probe(clip)
    for mask, cuts in ((None, (6, 11)), (masks, ())):
        with open_mask(Job(clip, tmp_path / "hd.mkv", (96, 128), mask=mask), info) as opened:
            assert take_survey(info, opened, lambda frames: None).cuts == cuts
