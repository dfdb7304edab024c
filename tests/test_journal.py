"""The journal and the parts in it: what is kept, who may touch it, and outputs that are the same however they came."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path, hash_files
from ldm_video.core.locks import is_held, locked
from ldm_video.pipeline.film import finish_share, restore_parts
from ldm_video.pipeline.journal import (
    Journal,
    Survey,
    changes,
    file_facts,
    from_levels,
    in_levels,
    to_levels,
)
from ldm_video.pipeline.parts import Parts
from ldm_video.pipeline.plan import PlanRules, Segment, make_plan
from ldm_video.pipeline.stream import Piece, RestoreSegment
from ldm_video.pipeline.workers import Share, find_share, own_device
from ldm_video.video_io import VideoWriter
from tests.cli_support import files_below, read_pixels

FRAMES, CUTS = 70, (25,)
SIZE = (4, 6)
RATE = Fraction(25)
IDENTITY = {"steps": 1, "box": [[1, 2, 3, 4]]}
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
ALL = Share()
SURVEY = Survey(FRAMES, CUTS, ("dull colours",))


def values(count: int = FRAMES) -> Tensor:
    """A grey level for each frame, ``t``, none like its neighbours'."""
    return torch.rand(count, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def pieces(todo: Sequence[Segment]) -> Generator[Piece, None, None]:
    wanted = {index for segment in todo for index in range(segment.start, segment.stop)}
    for index, value in enumerate(values()):
        if index in wanted:
            yield Piece(torch.full((3, 2, 3), float(value)), torch.zeros(1, *SIZE), index, index / RATE)


def enlarge(
    frames: Tensor, hole: Tensor, indices: list[int], before: Tensor | None, shown: Tensor | None = None
) -> Tensor:
    """Every frame, and of frames that are known already those."""
    output = frames.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    return output if before is None else torch.cat([before, output[len(before) :]])


def numbered(
    frames: Tensor, hole: Tensor, indices: list[int], before: Tensor | None, shown: Tensor | None = None
) -> Tensor:
    """A level that tells where the segment begins."""
    return torch.full((len(frames), 3, *SIZE), indices[0] / FRAMES)


class Film:
    """A clip's parts below ``folder``; each call stands for a process of its own."""

    def __init__(self, folder: Path, rules: PlanRules, name: str = "hd.mkv") -> None:
        self.output, self.rules = folder / name, rules
        self.plan = make_plan(FRAMES, CUTS, rules)

    def parts(self) -> Parts:
        writer = VideoWriter(self.output, SIZE, None, RATE, codec="ffv1")
        return Parts(Journal(self.output), self.plan, self.rules, {"result": (writer, slice(0, SIZE[1]))})

    def work(self, share: Share = ALL, segments: int | None = None, restore: RestoreSegment = enlarge) -> str:
        """Do ``share``, or only its next few ``segments``."""
        parts = self.parts()
        with parts.journal.hold(IDENTITY, SURVEY, share):
            todo = parts.to_do(share)[:segments]
            done = restore_parts(
                parts, todo, pieces(todo), restore, lambda piece, output: output, lambda _: nullcontext()
            )
            assert done == len(todo)
            return finish_share(parts, share) if segments is None else ""

    def levels(self) -> np.ndarray:
        """One number a frame in [-1, 1]; a frame is flat."""
        pixels = read_pixels(self.output)
        assert np.ptp(pixels, axis=(1, 2, 3)).max() < 1
        return pixels.mean((1, 2, 3)) / 127.5 - 1


@pytest.fixture(params=["fade", "continue"])
def rules(request: pytest.FixtureRequest) -> PlanRules:
    return PlanRules(segment=7, overlap=2, chain=3, join=request.param)


def test_an_identity_comes_back_as_it_is(tmp_path: Path, rules: PlanRules) -> None:
    film = Film(tmp_path, rules)
    assert len({segment.chain for segment in film.plan}) > 3
    assert film.work() == ""
    np.testing.assert_allclose(film.levels(), values().numpy(), atol=1.5 / 255)
    assert files_below(tmp_path) == {"hd.mkv"}


@pytest.mark.parametrize("name", ["hd.mkv", "frames"])
def test_interruptions_and_shares_change_nothing(tmp_path: Path, rules: PlanRules, name: str) -> None:
    (tmp_path / "a").mkdir()
    whole, broken = Film(tmp_path / "a", rules, name), Film(tmp_path, rules, name)
    whole.work(restore=numbered)
    broken.work(Share(1, 3), restore=numbered)
    for count in (1, 2, 0, 1):
        broken.work(segments=count, restore=numbered)
        assert not broken.output.exists()
    assert "1/2 has not begun" not in broken.work(Share(1, 2), restore=numbered)
    assert broken.work(restore=numbered) == ""
    assert np.array_equal(read_pixels(whole.output), read_pixels(broken.output))
    assert not Journal(whole.output).folder.exists() and not Journal(broken.output).folder.exists()


def test_a_lost_tail_is_made_again(tmp_path: Path, rules: PlanRules) -> None:
    film = Film(tmp_path, rules)
    film.work(segments=2)
    Journal(film.output).file(1, "tail").unlink()
    assert [segment.number for segment in film.parts().to_do(Share())][:2] == [0, 1]
    assert film.work() == ""
    np.testing.assert_allclose(film.levels(), values().numpy(), atol=1.5 / 255)


def test_a_kill_while_the_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the folder counts as nothing: its cross-fades could not be made again from its parts."""

    def killed(folder: Path, ignore_errors: bool) -> None:
        faded = list(folder.glob("*.fade.*"))
        assert faded
        for path in faded:
            path.unlink()
        raise KeyboardInterrupt

    film = Film(tmp_path, PlanRules(segment=7, overlap=2, chain=3))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ldm_video.pipeline.journal.shutil.rmtree", killed)
        film.work()
    film.output.unlink()
    assert film.work() == ""
    np.testing.assert_allclose(film.levels(), values().numpy(), atol=1.5 / 255)
    assert files_below(tmp_path) == {"hd.mkv"}


def test_what_is_left_of_a_journal_is_removed_unless_a_process_is_at_work(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "hd.mkv")
    journal.clear()
    assert not journal.folder.exists()
    with journal.hold(None, None, ALL):  # of one segment nothing is kept
        journal.clear()
        assert is_held(journal.folder / "share-0")
    with journal.hold(IDENTITY, SURVEY, ALL):
        journal.file(0, "result").touch()
    journal.clear()
    assert journal.file(0, "result").exists()
    (journal.folder / "journal.json").unlink()
    journal.clear()
    assert files_below(tmp_path) == set()


def test_chains_of_a_shot_fade_and_nothing_bleeds_over_a_cut(tmp_path: Path) -> None:
    film = Film(tmp_path, PlanRules(segment=7, overlap=2, chain=1))
    film.work(restore=numbered)
    levels = film.levels()
    for before, after in zip(film.plan, film.plan[1:], strict=False):
        low, high = before.start / FRAMES, after.start / FRAMES
        if after.start == CUTS[0]:
            expected = [low, high]
            seen = levels[after.start - 1 : after.start + 1]
        else:
            expected = [low, low + (high - low) / 3, low + 2 * (high - low) / 3, high]
            seen = levels[after.start - 1 : after.start + 3]
        np.testing.assert_allclose(seen, expected, atol=1.5 / 255)


def test_little_is_kept_on_disk_at_any_time(tmp_path: Path, rules: PlanRules) -> None:
    """Outputs at the ends of segments wait for one neighbour and go."""
    film = Film(tmp_path, rules)
    for _ in film.plan:
        film.work(segments=1)
        assert len([*Journal(film.output).folder.glob("*.tail"), *Journal(film.output).folder.glob("*.head")]) <= 1
    assert film.work() == ""


def test_a_share_says_what_is_left_to_whom(tmp_path: Path, rules: PlanRules) -> None:
    film = Film(tmp_path, rules)
    first = film.work(Share(0, 3))
    assert first.startswith("share 1/3 is done, ") and "2/3 has not begun, 3/3 has not begun" in first
    film.work(Share(1, 3), segments=1)
    third = film.work(Share(2, 3))
    assert "2/3 ended before its time" in third and "1/3" not in third
    assert film.work(Share(1, 3)) == ""
    np.testing.assert_allclose(film.levels(), values().numpy(), atol=1.5 / 255)


def test_a_process_at_work_is_not_disturbed(tmp_path: Path, rules: PlanRules) -> None:
    journal = Journal(tmp_path / "hd.mkv")
    journal.folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, journal.folder / "share-0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    (journal.folder / "journal.json").write_text('{"format": 1, "identity": {"steps": 2}, "survey": {}}')
    with pytest.raises(UserError, match="another process is at work on"), journal.hold(IDENTITY, SURVEY, Share()):
        pass
    with (
        pytest.raises(UserError, match=r"at work in .* with another box"),
        journal.hold(IDENTITY, SURVEY, Share(1, 2)),
    ):
        pass
    with pytest.raises(UserError, match="another process is at work"):
        journal.discard()
    holder.kill()  # the lock goes with its owner
    holder.wait()
    with journal.hold(IDENTITY, SURVEY, Share()) as reason:
        assert reason == "box, steps"


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "hd.mkv")
    with journal.hold(IDENTITY, SURVEY, Share(1, 2)):
        with atomic_path(journal.file(0, "result")) as being_written:
            being_written.touch()
            for share in (Share(0, 2), ALL):  # the second one would have the whole clip for itself
                with journal.hold(IDENTITY, SURVEY, share):
                    assert being_written.exists()
                assert being_written.exists()
        being_written.touch()  # as if killed
        assert journal.file(0, "result").exists()
    with journal.hold(IDENTITY, SURVEY, ALL):
        assert journal.file(0, "result").exists() and not being_written.exists()


def test_kept_work_is_used_for_the_same_job_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "hd.mkv")
    assert journal.survey(IDENTITY) is None
    with journal.hold(IDENTITY, SURVEY, Share()) as reason:
        assert reason == ""
        journal.keep_frames(3, "tail", torch.zeros(1, 3, 2, 2), [Fraction(1, 3)])
        assert is_held(journal.folder / "share-0")
    assert journal.survey(IDENTITY) == SURVEY
    assert journal.survey({**IDENTITY, "steps": 2}) is None
    with journal.hold(IDENTITY, SURVEY, Share()) as reason:
        assert reason == "" and journal.file(3, "tail").exists()
    with journal.hold({**IDENTITY, "steps": 2}, SURVEY, Share()) as reason:
        assert reason == "steps" and not journal.file(3, "tail").exists()
    assert not journal.folder.exists()  # nothing was kept


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_a_damaged_journal_counts_as_none(tmp_path: Path, text: str) -> None:
    journal = Journal(tmp_path / "hd.mkv")
    journal.folder.mkdir()
    (journal.folder / "journal.json").write_text(text)
    journal.file(0, "result").touch()
    with journal.hold(IDENTITY, SURVEY, Share()):
        assert not journal.file(0, "result").exists()
        assert journal.survey(IDENTITY) == SURVEY


def test_frames_and_times_are_kept_exactly(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "hd.mkv")
    journal.folder.mkdir()
    frames = torch.arange(256).float().reshape(1, 1, 16, 16).expand(2, 3, 16, 16) / 127.5 - 1
    journal.keep_frames(0, "tail", frames, [Fraction(1001, 30000), Fraction(2002, 30000)])
    back, times = journal.frames(0, "tail")
    torch.testing.assert_close(back, frames, atol=1e-6, rtol=0)  # every 8-bit value is a level
    assert times == [Fraction(1001, 30000), Fraction(2002, 30000)]
    noise = torch.rand(1, 3, 9, 9) * 2 - 1
    assert torch.equal(in_levels(noise), from_levels(to_levels(in_levels(noise))))
    assert (in_levels(noise) - noise).abs().max() < 2 / 65535
    with pytest.raises(FileNotFoundError):
        journal.frames(1, "tail")


def test_what_tells_files_apart(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "codec").mkdir(parents=True)
    (folder / "codec" / "w").write_bytes(b"12")
    before, facts = hash_files(folder), file_facts(folder / "codec" / "w")
    (folder / "codec" / "w").write_bytes(b"13")
    assert hash_files(folder) != before
    assert file_facts(folder / "codec" / "w") != facts
    (folder / "codec" / "w").write_bytes(b"12")
    assert hash_files(folder) == before
    (folder / "codec" / "w").rename(folder / "codec" / "v")
    assert hash_files(folder) != before
    assert file_facts(None) is None
    assert changes({"a": 1, "b": [1, 2]}, {"b": (1, 2), "c": 0}) == ["a", "c"]


def test_shares_and_devices() -> None:
    assert find_share("2/8", {"RANK": "1", "WORLD_SIZE": "3"}) == Share(1, 8)
    assert find_share(None, {"RANK": "1", "WORLD_SIZE": "3"}) == Share(1, 3)
    assert find_share(None, {}) == Share()
    for text in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(UserError, match=f"--share {text}"):
            find_share(text, {})
    with pytest.raises(UserError, match="RANK"):
        find_share(None, {"RANK": "x"})
    owners = [[share for share in range(3) if Share(share, 3).owns(chain)] for chain in range(6)]
    assert owners == [[0], [1], [2], [0], [1], [2]]
    assert own_device("auto", {"LOCAL_RANK": "5"}, 4) == "cuda:1"
    assert own_device("cuda", {"LOCAL_RANK": "1"}, 4) == "cuda:1"
    assert own_device("cpu", {"LOCAL_RANK": "1"}, 4) == "cpu"
    assert own_device("auto", {"LOCAL_RANK": "1"}, 0) == "auto"
    assert own_device("auto", {}, 2) == "auto"


def test_a_lock_is_one_process_wide(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as mine, locked(tmp_path / "lock", wait=False) as second:
        assert (mine, second) == (True, False)
        assert is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "lock")
