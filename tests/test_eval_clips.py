"""Which clips are scored against which, and how their frames are read: exactly, to the end, or not at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.clips import ClipPair, find_clips, match_clips, zip_frames
from ldm_video.core.errors import UserError
from tests.eval_run_support import SIZE, command, write_clip, write_pairs


@pytest.fixture
def clips(tmp_path: Path) -> tuple[Path, Path]:
    return write_pairs(tmp_path)


def test_folders_of_clips_are_matched_by_name(clips: tuple[Path, Path]) -> None:
    pred, ref = clips
    write_clip(ref / "c")
    pairs, missing = match_clips(pred, ref)
    assert [(pair.name, pair.pred, pair.ref) for pair in pairs] == [(n, pred / n, ref / n) for n in "ab"]
    assert len(missing) == 1 and missing[0].startswith("c: no clip of that name in")


def test_single_clips_pair_whatever_their_names(clips: tuple[Path, Path]) -> None:
    pred, ref = clips
    pairs, _ = match_clips(pred / "b", ref / "a")
    assert pairs == [ClipPair("a", pred / "b", ref / "a")]


def test_a_folder_has_the_same_name_alone_and_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = write_clip(tmp_path / "ref" / "city.v2")
    for name in ("city.v2", "city"):
        write_clip(tmp_path / "pred" / name)
    pairs, missing = match_clips(tmp_path / "pred", alone)
    assert pairs == [ClipPair("city.v2", tmp_path / "pred" / "city.v2", alone)] and not missing
    monkeypatch.chdir(alone)
    assert find_clips(".") == {"city.v2": Path(".")}


def test_find_clips_refuses_nothing_and_twins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        find_clips(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no video"):
        find_clips(tmp_path / "empty")
    for suffix in ("mp4", "mkv"):
        (tmp_path / f"x.{suffix}").touch()
    with pytest.raises(UserError, match="two clips are named x"):
        find_clips(tmp_path)


def test_a_picture_beside_folders_of_frames_is_not_taken_for_the_clip(clips: tuple[Path, Path]) -> None:
    _, ref = clips
    cv2.imwrite(str(ref / "cover.png"), np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(UserError, match=r"folders of frames, such as cover\.png and a;"):
        find_clips(ref)
    (ref / "cover.png").rename(ref / ".cover.png")
    assert list(find_clips(ref)) == ["a", "b"]


def test_frames_are_read_exactly(clips: tuple[Path, Path]) -> None:
    pred, ref = clips
    moment = next(zip_frames(ClipPair("a", pred / "a", ref / "a")))
    expected = cv2.imread(str(ref / "a" / "00000.png"))[..., ::-1] / 255.0
    np.testing.assert_allclose(moment["ref"], expected, atol=1e-6)


def test_other_length_is_an_error_that_names_both(tmp_path: Path) -> None:
    pair = ClipPair("x", write_clip(tmp_path / "p", 3), write_clip(tmp_path / "r", 4))
    with pytest.raises(UserError, match=r"/p has 3 frames, .*/r has more"):
        list(zip_frames(pair))


def test_a_gap_in_the_numbering_is_an_error(tmp_path: Path) -> None:
    pair = ClipPair("x", write_clip(tmp_path / "p"), write_clip(tmp_path / "r"))
    for folder in "pr":
        (tmp_path / folder / "00002.png").unlink()
    with pytest.raises(UserError, match="frame 2 is missing"):
        list(zip_frames(pair))


def test_hidden_files_are_no_frames(tmp_path: Path) -> None:
    """macOS leaves ``._00001.png`` beside ``00001.png`` on foreign disks."""
    folder = write_clip(tmp_path / "p", frames=3)
    (folder / "._00001.png").write_bytes(b"Mac OS X")
    (folder / ".00009.png").write_bytes(b"")
    assert len(list(zip_frames(ClipPair("x", folder, folder)))) == 3


def test_other_size_is_an_error(tmp_path: Path) -> None:
    pair = ClipPair("x", write_clip(tmp_path / "p", size=(48, 60)), write_clip(tmp_path / "r"))
    with pytest.raises(UserError, match=r"differ in size \(60x48 and 64x48\)"):
        list(zip_frames(pair))


def test_mask_of_one_frame_holds_and_of_another_length_is_refused(clips: tuple[Path, Path], tmp_path: Path) -> None:
    pred, ref = clips
    small = np.zeros((24, 32), np.uint8)
    small[5:9, 4:10] = 255
    (tmp_path / "m").mkdir()
    cv2.imwrite(str(tmp_path / "m" / "0.png"), small)
    masks = [m["mask"] for m in zip_frames(ClipPair("a", pred / "a", ref / "a", mask=tmp_path / "m"))]
    assert len(masks) == 4
    for mask in masks:
        np.testing.assert_array_equal(mask, small.repeat(2, axis=0).repeat(2, axis=1) > 0)
    cv2.imwrite(str(tmp_path / "m" / "1.png"), small)
    with pytest.raises(UserError, match="2 frames"):
        list(zip_frames(ClipPair("a", pred / "a", ref / "a", mask=tmp_path / "m")))


def test_a_damaged_picture_is_not_scored(
    clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """libjpeg patches what lacks with grey, which would be taken for what the method made."""
    pred = tmp_path / "jpeg" / "a"
    pred.mkdir(parents=True)
    for file in sorted((clips[0] / "a").iterdir()):
        cv2.imwrite(str(pred / f"{file.stem}.jpg"), cv2.imread(str(file)))
    first = min(pred.iterdir())
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    arguments = ("--pred", pred, "--ref", clips[1] / "a", "--metrics", "psnr", "--out", tmp_path / "out")
    assert command(monkeypatch, *arguments) == 2
    assert "damaged" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_stray_picture_beside_videos_is_named(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "sheet.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"sheet\.png and a\.mp4"):
        find_clips(tmp_path)
    (tmp_path / "sheet.png").rename(tmp_path / ".hidden.png")
    assert list(find_clips(tmp_path)) == ["a", "b"]
