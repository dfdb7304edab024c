"""Outputs of ``infer.py`` that are there already, and whose they are: nothing is replaced unless it is asked for."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from ldm_video.pipeline import job
from ldm_video.pipeline.journal import Journal, Survey
from ldm_video.pipeline.parts import Parts
from ldm_video.pipeline.workers import Share
from ldm_video.video_io import VideoWriter
from tests.cli_support import files_below, read_pixels, write_tiny_bundle
from tests.film_support import FRAMES, SIZE, finished_parts, parts_folder, restore_to, write_one_segment
from tests.video_io_support import pan, write_clip

Restore = Callable[..., int]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def bundle(place: Path) -> Path:
    return write_tiny_bundle(place / "tiny")


@pytest.fixture(scope="module")
def clip(place: Path) -> Path:
    return write_clip(place / "sd.mkv", pan(FRAMES, *SIZE), codec="ffv1")


@pytest.fixture
def restore(bundle: Path, clip: Path, tmp_path: Path) -> Restore:
    return restore_to(tmp_path, clip, bundle)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    return write_one_segment(tmp_path)


def left_while_joining(restore: Restore, output: Path) -> None:
    """A journal as a process leaves it that is killed once the output has its name; the output says what it is."""
    assert restore(output.name, "--share", "1/2") == 0
    assert finished_parts(output)
    (parts_folder(output) / "joining").touch()
    output.write_text("finished")


# Whose work is kept.


@pytest.mark.parametrize("command", ["another clip", "another seed"])
def test_an_output_that_another_command_was_putting_together_is_not_replaced(
    restore: Restore, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    output = tmp_path / "hd.mkv"
    left_while_joining(restore, output)
    before = files_below(tmp_path)
    capsys.readouterr()
    assert restore("hd.mkv", source=other) == 2 if command == "another clip" else restore("hd.mkv", "--seed", 9) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {output} exists already, and what is kept in {parts_folder(output)} is another")
    assert output.read_text() == "finished"
    assert files_below(tmp_path) == before


def test_the_same_command_ends_what_it_was_putting_together(restore: Restore, tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    left_while_joining(restore, output)
    assert restore("hd.mkv") == 0
    assert len(read_pixels(output)) == FRAMES
    assert files_below(tmp_path) == {"hd.mkv"}


def test_restart_refuses_such_an_output_before_it_discards_anything(
    restore: Restore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "hd.mkv"
    left_while_joining(restore, output)
    before = files_below(tmp_path)
    capsys.readouterr()
    assert restore("hd.mkv", "--restart") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {output} exists already; pass --overwrite or choose another output"
    assert files_below(tmp_path) == before
    assert restore("hd.mkv", "--restart", "--overwrite") == 0
    assert f"{FRAMES} frames" in capsys.readouterr().out
    assert files_below(tmp_path) == {"hd.mkv"}


def test_of_an_archive_it_is_skipped(restore: Restore, other: Path, tmp_path: Path) -> None:
    hd = tmp_path / "archive_hd"
    hd.mkdir()
    left_while_joining(lambda name, *options: restore(f"archive_hd/{name}", *options), hd / "hd.mkv")
    assert restore("archive_hd", source=other.parent) == 0
    assert (hd / "hd.mkv").read_text() == "finished"
    assert json.loads((hd / "report.json").read_text())["clips"]["hd.mkv"]["state"] == "skipped"


# Ended while the folder of a finished output is removed.


def test_a_signal_while_the_journal_is_removed_promises_nothing_more(
    restore: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the next command on that output removes the rest, though it is refused."""
    output = tmp_path / "hd.mkv"
    left_while_removing(restore, output, monkeypatch)
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert finished_parts(output)
    assert restore("hd.mkv") == 2
    assert "exists already" in capsys.readouterr().err
    assert len(read_pixels(output)) == FRAMES
    assert files_below(tmp_path) == {"hd.mkv"}


def test_of_an_archive_what_is_left_of_a_journal_is_removed(
    restore: Restore, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hd = tmp_path / "archive_hd"
    hd.mkdir()
    left_while_removing(lambda name, *options: restore(f"archive_hd/{name}", *options), hd / "hd.mkv", monkeypatch)
    assert restore("archive_hd", "--dry-run", source=other.parent) == 0
    assert finished_parts(hd / "hd.mkv")
    assert restore("archive_hd", source=other.parent) == 0
    assert files_below(hd) == {"hd.mkv", "report.json"}


def left_while_removing(restore: Restore, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(folder: Path, ignore_errors: bool) -> None:
        raise KeyboardInterrupt(int(signal.SIGTERM))

    with monkeypatch.context() as patch:
        patch.setattr("ldm_video.pipeline.journal.shutil.rmtree", stopped)
        assert restore(output.name) == 128 + signal.SIGTERM


# Two processes.


@pytest.mark.parametrize(("name", "options"), [("hd.mkv", ()), ("hd", ()), ("hd.mkv", ("--overwrite",))])
def test_a_second_process_is_refused_while_the_first_works_on_one_segment(
    restore: Restore, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: tuple[str]
) -> None:
    """And leaves the first one's lock as it is; the first leaves nothing but its output."""
    with Journal(tmp_path / name).hold(None, None, Share()):
        before = files_below(tmp_path)
        for source in (other, None):  # one segment and many
            assert restore(name, *options, **({} if source is None else {"source": source})) == 2
            lines = capsys.readouterr().err.splitlines()
            assert lines == [
                f"error: another process is at work on {tmp_path / f'.{name}.parts'}; wait for it or stop it"
            ]
        assert restore(name, "--share", "2/2", *options) == 2
        assert "another process is at work in" in capsys.readouterr().err
        assert files_below(tmp_path) == before
    assert restore(name, *options, source=other) == 0
    assert not parts_folder(tmp_path / name).exists()


def test_a_segment_is_restored_under_the_lock(
    restore: Restore, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, real = [], job.restore_segment

    def meanwhile(*given: object) -> object:
        monkeypatch.setattr(job, "restore_segment", real)
        codes.append(restore("hd.mkv", source=other))
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "restore_segment", meanwhile)
    assert restore("hd.mkv", source=other) == 0
    assert codes == [2]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("name", ["hd.mkv", "hd", "hd.png"])
def test_an_output_that_appears_meanwhile_stays(
    restore: Restore, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, links: bool,
) -> None:  # fmt: skip
    output, real = tmp_path / name, job.restore_segment
    theirs = output / "000000.png" if name == "hd" else output

    def appears(*given: object) -> object:
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_text("theirs")
        return real(*given)  # type: ignore[arg-type]

    if not links:
        monkeypatch.setattr("os.link", refuse)
        monkeypatch.setattr("os.rename", refuse)
    monkeypatch.setattr(job, "restore_segment", appears)
    source = write_clip(tmp_path / "one.mkv", pan(1, *SIZE), codec="ffv1") if name == "hd.png" else other
    before = files_below(tmp_path)
    assert restore(name, source=source) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {output} was put there while this was at work; pass --overwrite or choose another output"
    assert files_below(tmp_path) - before == {str(path.relative_to(tmp_path)) for path in (output, theirs)}
    assert theirs.read_text() == "theirs"
    assert restore(name, "--overwrite", source=source) == 0


def refuse(*_: object) -> None:
    """A file system without links."""
    raise PermissionError(1, "Operation not permitted")


def test_the_work_is_kept_where_the_output_of_many_segments_has_appeared(
    restore: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it does not take the output for its own from then on."""
    output, join = tmp_path / "hd.mkv", Parts._in_order

    def appears(parts: Parts, name: str) -> list[Path]:
        output.write_text("theirs")
        return join(parts, name)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "_in_order", appears)
        assert restore("hd.mkv") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "was put there while this was at work" in line and f"{FRAMES} of {FRAMES} frames are kept" in line
    assert restore("hd.mkv") == 2
    assert output.read_text() == "theirs"
    capsys.readouterr()
    assert restore("hd.mkv", "--overwrite") == 0
    assert capsys.readouterr().out.startswith(f"{output}: 0 frames")
    assert len(read_pixels(output)) == FRAMES


@pytest.mark.parametrize("segments", [1, 9])
def test_a_comparison_that_appears_meanwhile_leaves_no_half_of_the_outputs(
    restore: Restore, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    segments: int,
) -> None:  # fmt: skip
    output, theirs, write = tmp_path / "hd.mkv", tmp_path / "hd_compare.mkv", job.side_by_side
    given = {"source": other} if segments == 1 else {}

    def appears(*pixels: Tensor) -> Tensor:
        theirs.write_text("theirs")
        return write(*pixels)

    with monkeypatch.context() as patch:
        patch.setattr(job, "side_by_side", appears)
        assert restore("hd.mkv", "--compare", **given) == 2
    assert f"{theirs} was put there while this was at work" in capsys.readouterr().err
    assert theirs.read_text() == "theirs" and not output.exists()
    theirs.unlink()
    assert restore("hd.mkv", "--compare", **given) == 0
    assert len(read_pixels(output)) == len(read_pixels(theirs)) == (3 if segments == 1 else FRAMES)
    assert files_below(tmp_path) == {"archive", "archive/hd.mkv", output.name, theirs.name}


def test_a_comparison_that_is_taken_after_the_result_has_its_name(
    restore: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is known for this command's own from then on."""
    output, theirs, given = tmp_path / "hd.mkv", tmp_path / "hd_compare.mkv", VideoWriter.__exit__

    def appears(writer: VideoWriter, *error: BaseException | None) -> None:
        given(writer, *error)  # type: ignore[arg-type]
        if writer.path == output:
            theirs.write_text("theirs")

    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "__exit__", appears)
        assert restore("hd.mkv", "--compare") == 2
    assert theirs.read_text() == "theirs" and len(read_pixels(output)) == FRAMES
    theirs.unlink()
    assert restore("hd.mkv", "--compare") == 0
    assert files_below(tmp_path) == {output.name, theirs.name}


def test_a_join_that_was_cut_off_is_ended_by_whoever_waited(tmp_path: Path, restore: Restore) -> None:
    """A share that has ended its work waits while another puts the outputs together, and is killed half way."""
    output, options = tmp_path / "hd.mkv", ("--compare", "--box", "8,8,16,12")
    assert restore("hd.mkv", "--share", "1/2", *options) == 0
    join = Parts.join

    def half_way(parts: Parts) -> None:
        (parts.journal.folder / "joining").touch()
        output.write_text("of the other share")
        join(parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "join", half_way)
        assert restore("hd.mkv", "--share", "2/2", *options) == 0
    result, beside = read_pixels(output), read_pixels(tmp_path / "hd_compare.mkv")
    assert len(result) == len(beside) == FRAMES
    width = result.shape[2]
    assert np.array_equal(beside[:, :, width + 8 :], result[:, :, 8:])  # on the right; at the seam colours run together
    assert np.abs(beside[:, :, :width] - result).max() > 8
    assert files_below(tmp_path) == {"hd.mkv", "hd_compare.mkv"}


# Kept work that is not used.


def test_one_segment_says_that_another_commands_work_is_not_used(
    restore: Restore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "hd.mkv"
    assert restore("hd.mkv", "--share", "1/2") == 0
    assert finished_parts(output)
    capsys.readouterr()
    assert restore("hd.mkv", "segment=64") == 0
    assert capsys.readouterr().err.splitlines() == [
        f"{parts_folder(output)} holds work of a different command (segments: segment differs): starting over"
    ]
    assert files_below(tmp_path) == {"hd.mkv"}


def test_one_segment_takes_nothing_from_a_process_at_work(
    restore: Restore, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = {"seed": 5}
    with Journal(tmp_path / "hd.mkv").hold(identity, Survey(9), Share(1, 2)):
        before = files_below(tmp_path)
        assert restore("hd.mkv", source=other) == 2
        assert "another process is at work in" in capsys.readouterr().err
        assert files_below(tmp_path) == before
