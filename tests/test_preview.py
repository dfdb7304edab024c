"""``--preview``: a tenth of the frames at most, like those of the whole run, under a name of its own."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import infer
from ldm_video.models.bundle import save_bundle
from ldm_video.pipeline.names import preview_path
from ldm_video.pipeline.preview import choose_runs
from ldm_video.video_io import probe
from tests.cli_support import call, files_below, read_pixels, tiny_model
from tests.test_infer_cli import clip_with_sound
from tests.video_io_support import pan, write_clip

SIZE = (16, 32)
FRAMES = 200


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At 5 frames a second, so that a run of a second is short."""
    frames = pan(FRAMES, *SIZE, step=1)
    return write_clip(tmp_path_factory.mktemp("clip") / "sd.mp4", frames, rate=Fraction(5))


@pytest.mark.parametrize("frames", [1, 3, 12, 119, 120, 199, 500, 501, 2_000, 180_000])
@pytest.mark.parametrize(("length", "window"), [(25, 12), (12, 12), (60, 16)])
def test_runs_are_a_tenth_or_one_window(frames: int, length: int, window: int) -> None:
    runs = choose_runs(frames, length, window)
    every = [index for run in runs for index in run]
    assert every == sorted(set(every)) and every[0] >= 0 and every[-1] < frames
    assert len(every) <= max(frames // 10, min(window, frames))
    assert 1 <= len(runs) <= 10
    assert all(len(run) >= min(window, frames) for run in runs)
    if len(runs) > 1:  # spread: none further from the next than the clip's share of a run
        starts = [run.start for run in runs]
        assert np.diff([0, *starts, frames]).max() <= frames / len(runs) + len(runs[0])


def test_the_name(tmp_path: Path) -> None:
    assert preview_path(Path("x/hd.tar.mp4")) == Path("x/hd.tar.preview.mp4")
    assert preview_path(Path("x/frames")) == Path("x/frames_preview")


def test_names_beside_a_folder_whose_name_has_a_dot(bundle: Path, tmp_path: Path) -> None:
    """There it is a folder; a name like it that is not there yet would be a file's, of an unknown kind."""
    source = write_clip(tmp_path / "sd.mp4", pan(3, *SIZE))
    output = tmp_path / "hd.1.5x"
    output.mkdir()
    command = ("--input", source, "--output", output, "--model", bundle, "--scale", 1, "--compare")
    assert call(infer, *command) == 0
    assert call(infer, *command, "--preview") == 0
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {"hd.1.5x", "hd_1_5x_compare", "hd_1_5x_preview", "hd_1_5x_preview_compare"}


def test_a_tenth_of_the_frames_that_are_those_of_the_whole_run(bundle: Path, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "hd.mkv"
    command = (
        "--input", clip, "--output", output, "--model", bundle, "--scale", 2, "--codec", "ffv1", "--window", 4,
        "--overlap", 1,
    )  # fmt: skip
    assert call(infer, *command, "--preview") == 0
    assert files_below(tmp_path) == {"hd.preview.mkv"}
    runs = choose_runs(FRAMES, 5, 4)
    indices = [index for run in runs for index in run]
    preview = read_pixels(tmp_path / "hd.preview.mkv")
    assert len(preview) == len(indices) == FRAMES // 10
    assert len(runs) == 4
    assert probe(tmp_path / "hd.preview.mkv").rate == 5

    assert call(infer, *command) == 0
    whole = read_pixels(output)
    error = np.abs(preview - whole[indices]).mean()
    assert error < 0.5 * np.abs(preview - whole[[index + 10 for index in indices]]).mean()
    assert error < 3  # of 255; the frames at a run's ends have other neighbours

    before = (tmp_path / "hd.preview.mkv").stat().st_mtime_ns
    assert call(infer, *command, "--preview") == 0  # the output is there, an older preview too
    assert (tmp_path / "hd.preview.mkv").stat().st_mtime_ns > before
    assert np.array_equal(read_pixels(tmp_path / "hd.preview.mkv"), preview)


def test_a_short_clip_without_its_sound_to_a_folder(bundle: Path, tmp_path: Path) -> None:
    source = clip_with_sound(tmp_path / "sound.mp4")  # 25 frames
    common = ("--input", source, "--model", bundle, "--scale", 1, "--preview", "--window", 4, "--overlap", 1)
    assert call(infer, *common, "--output", tmp_path / "hd.mp4") == 0
    info = probe(tmp_path / "hd.preview.mp4")
    assert (info.frames, info.audio_streams) == (4, 0)
    assert call(infer, *common, "--output", tmp_path / "frames") == 0
    assert len(list((tmp_path / "frames_preview").glob("*.png"))) == 4


def test_a_clip_that_has_fewer_frames_than_its_duration_holds(bundle: Path, tmp_path: Path) -> None:
    """119 frames in as many 25ths of a second, and a last one a minute later; Matroska tells no count."""
    times = [*(40 * i for i in range(119)), 65_000]
    frames = pan(120, *SIZE, step=1)
    source = write_clip(tmp_path / "sd.mkv", frames, times=times, time_base=Fraction(1, 1000))
    assert probe(source).frames is None
    command = ("--input", source, "--output", tmp_path / "hd.mp4", "--model", bundle, "--scale", 1, "--window", 4)
    assert call(infer, *command, "--overlap", 1, "--preview") == 0
    assert probe(tmp_path / "hd.preview.mp4").frames == 12


def test_steps_are_few_unless_they_are_given(
    bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model()
    model.sampling = replace(model.sampling, steps=50)
    save_bundle(model, tmp_path / "slow")
    command = ("--input", clip, "--output", tmp_path / "hd.mp4", "--dry-run", "--model")
    assert probe_steps(capsys, *command, tmp_path / "slow") == 50
    assert probe_steps(capsys, *command, tmp_path / "slow", "--preview") == 8
    assert probe_steps(capsys, *command, tmp_path / "slow", "--preview", "--steps", 11) == 11
    assert probe_steps(capsys, *command, bundle, "--preview") == 1  # the model's own are fewer


def probe_steps(capsys: pytest.CaptureFixture[str], *command: object) -> int:
    assert call(infer, *command) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("sampling:"))
    return int(line.split()[1])


def test_previews_of_an_archive_leave_its_report_alone(bundle: Path, clip: Path, tmp_path: Path) -> None:
    common = ("--input", clip.parent, "--output", tmp_path / "hd", "--model", bundle, "--scale", 1)
    for _ in range(2):
        assert call(infer, *common, "--preview") == 0
    assert files_below(tmp_path / "hd") == {"sd.preview.mp4", "report.preview.json"}
