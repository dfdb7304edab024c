"""The picture strip: panels are the frames' own pixels, and bad input is one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval import strip
from ldm_video.core.errors import UserError, run_cli


def picture(value: float, height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), value)


def test_panels_stand_side_by_side_at_the_largest_size() -> None:
    small = torch.tensor([[[-1.0, 1.0]]]).expand(3, 1, 2)
    image = strip.make_strip({"in": small, "out": picture(0.0, 4, 8)})
    assert image.shape == (strip.BAR + 4, 16, 3)
    below = image[strip.BAR :]
    assert (below[:, :4] == 0).all() and (below[:, 4:8] == 255).all()  # nearest: two pixels become two halves
    assert (below[:, 8:] == 128).all()


def test_crop_and_zoom_cut_the_same_place_out_of_every_panel() -> None:
    ramp = torch.linspace(-1, 1, 8).expand(3, 4, 8)
    image = strip.make_strip({"a": ramp, "b": -ramp}, crop=(2, 1, 3, 2), zoom=2)[strip.BAR :]
    assert image.shape == (4, 12, 3)
    levels = np.round((np.linspace(-1, 1, 8)[2:5] + 1) * 127.5)
    np.testing.assert_array_equal(image[0, :6, 0], np.repeat(levels, 2))
    np.testing.assert_array_equal(image[0, 6:, 0], np.repeat(255 - levels, 2))


def test_a_crop_outside_the_frame_is_refused() -> None:
    with pytest.raises(UserError, match="outside"):
        strip.make_strip({"a": picture(0, 4, 4)}, crop=(9, 0, 2, 2))


def test_command_writes_the_asked_frame(
    tiny_video: Callable[..., Path] | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "strip.png"
    monkeypatch.setattr(sys, "argv", ["strip", f"clip={tiny_video}", "--frame", "3", "--out", str(out)])
    strip.main()
    (expected,) = strip.read_frames(Path(str(tiny_video)), 3, 1)
    written = cv2.imread(str(out))[strip.BAR :, :, ::-1]
    np.testing.assert_array_equal(written, ((expected + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def test_several_frames_are_an_animation(tiny_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "moment.webp"
    clips = [f"a={tiny_video}", f"b={tiny_video}"]
    monkeypatch.setattr(sys, "argv", ["strip", *clips, "--frame", "1", "--frames", "3", "--out", str(out)])
    strip.main()
    read, animation = cv2.imreadanimation(str(out))
    assert read and len(animation.frames) == 3
    expected = strip.read_frames(tiny_video, 1, 3)
    for shown, frame in zip(animation.frames, expected, strict=True):
        shown, width = shown[strip.BAR :, :, 2::-1].astype(int), frame.shape[2]
        assert shown.shape[1] == 2 * width and abs(shown[:, :width] - shown[:, width:]).mean() < 3  # lossy
        assert abs(shown[:, :width] - ((frame + 1) * 127.5).permute(1, 2, 0).numpy()).mean() < 12


@pytest.mark.parametrize("options", [["--frames", "2"], ["--frames", "99", "--out", "x.webp"], ["--out", "x.webp"]])
def test_frames_and_files_that_do_not_fit(
    options: list[str], tiny_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["strip", f"a={tiny_video}", "--out", "x.png", *options])
    with pytest.raises(UserError, match=r"has no frame|one frame is a"):
        strip.main()
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("clips", [["no-caption.mp4"], ["a=/nowhere.mp4"]])
def test_bad_input_is_one_line(
    clips: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["strip", *clips, "--out", str(tmp_path / "x.png")])
    with pytest.raises(SystemExit) as stop:
        run_cli(strip.main)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [("--frame", "-1"), ("--frames", "0"), ("--zoom", "0"), ("--out", "OUT/s"), ("--out", "OUT/s.foo"), ("a=x.png",)],
)
def test_bad_words_are_one_line_and_2(
    tiny_video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    given = [word.replace("OUT", str(tmp_path)) for word in words]
    out = [] if "--out" in given else ["--out", str(tmp_path / "s.png")]
    monkeypatch.setattr(sys, "argv", ["strip", f"a={tiny_video}", *given, *out])
    with pytest.raises(SystemExit) as stop:
        run_cli(strip.main)
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.glob("*.png")) == []
