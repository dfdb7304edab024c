"""Outputs of ``infer.py`` that are symbolic links: they are made where the links lead."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli_support import files_below, read_pixels
from tests.film_support import FRAMES, SIZE, parts_folder, restore_to, write_one_segment
from tests.video_io_support import pan, write_clip

Restore = Callable[..., int]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("links") / "sd.mkv", pan(FRAMES, *SIZE), codec="ffv1")


@pytest.fixture
def restore(bundle: Path, clip: Path, tmp_path: Path) -> Restore:
    return restore_to(tmp_path, clip, bundle)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    return write_one_segment(tmp_path)


@pytest.mark.parametrize("there", [False, True])
def test_an_output_that_is_a_link_is_made_where_it_leads(
    restore: Restore, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    """With its parts and its comparison, which may not fit beside the link."""
    link, disk = tmp_path / "hd.mkv", tmp_path / "disk"
    disk.mkdir()
    link.symlink_to("disk/kept.mkv")
    if there:
        (disk / "kept.mkv").write_text("old")
        assert restore("hd.mkv") == 2
        assert f"{disk / 'kept.mkv'} exists already" in capsys.readouterr().err
    assert restore("hd.mkv", "--compare", "--overwrite", "--share", "1/2") == 0
    assert files_below(tmp_path) - files_below(parts_folder(disk / "kept.mkv")) >= {"hd.mkv", "disk/.kept.mkv.parts"}
    assert not parts_folder(link).exists()
    assert restore("hd.mkv", "--compare", "--overwrite") == 0
    assert link.is_symlink() and len(read_pixels(link)) == FRAMES
    assert files_below(tmp_path) == {"hd.mkv", "disk", "disk/kept.mkv", "disk/kept_compare.mkv"}


def test_a_link_to_a_folder_of_frames(restore: Restore, other: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "frames.v2").mkdir(parents=True)
    (tmp_path / "hd").symlink_to(tmp_path / "disk" / "frames.v2")
    assert restore("hd", source=other) == 0
    assert (tmp_path / "hd").is_symlink() and len(files_below(tmp_path / "disk" / "frames.v2")) == 3


def test_links_among_the_outputs_of_an_archive(restore: Restore, other: Path, tmp_path: Path) -> None:
    for folder in ("archive_hd", "disk"):
        (tmp_path / folder).mkdir()
    (tmp_path / "archive_hd" / "hd.mkv").symlink_to(tmp_path / "disk" / "hd.mkv")
    assert restore("archive_hd", source=other.parent) == 0
    assert (tmp_path / "archive_hd" / "hd.mkv").is_symlink()
    assert len(read_pixels(tmp_path / "disk" / "hd.mkv")) == 3
    assert restore("archive_hd", source=other.parent) == 0
    assert json.loads((tmp_path / "archive_hd" / "report.json").read_text())["skipped"] == 1


@pytest.mark.parametrize("leads_to", ["hd.mkv", "store"])
def test_a_link_that_leads_to_nothing_of_its_kind_is_replaced(
    restore: Restore, other: Path, tmp_path: Path, leads_to: str
) -> None:
    (tmp_path / "hd.mkv").symlink_to(leads_to)  # to itself, or to a name that a folder of frames would have
    assert restore("hd.mkv", source=other) == 0
    assert not (tmp_path / "hd.mkv").is_symlink() and len(read_pixels(tmp_path / "hd.mkv")) == 3
    assert not (tmp_path / "store").exists()
