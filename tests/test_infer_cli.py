"""``infer.py`` from the command line to the file, with a tiny model: what comes out, and what each option does."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import infer
from ldm_video.pipeline.arguments import DEFAULTS, SHIPPED, parse_arguments
from ldm_video.pipeline.settings import read_config
from ldm_video.video_io import probe
from tests.cli_support import ROOT, call, files_below, read_pixels, spawn
from tests.video_io_support import packet_bytes, packet_times, pan, write_clip, yuv_frame

SIZE = (32, 48)
FRAMES = 7
NTSC = Fraction(30000, 1001)
LOSSLESS = ("--codec", "ffv1")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At a rate that is no whole number."""
    return write_clip(tmp_path_factory.mktemp("clip") / "sd.mp4", pan(FRAMES, *SIZE), rate=NTSC)


@pytest.fixture
def upscale(bundle: Path, clip: Path, tmp_path: Path) -> Callable[..., Path]:
    """``upscale("name.mkv", *options)``: run infer.py on the clip, expect success, return the output."""

    def run(name: str, *options: object, source: Path = clip) -> Path:
        output = tmp_path / name
        assert call(infer, "--input", source, "--output", output, "--model", bundle, *options) == 0
        return output

    return run


def clip_with_sound(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.height, video.width = SIZE
        audio = output.add_stream("aac", rate=48000)
        for image in pan(25, *SIZE):
            output.mux(video.encode(yuv_frame(image)))
        for i in range(47):
            tone = 0.2 * np.sin(np.arange(1024 * i, 1024 * (i + 1)) * 0.05).astype(np.float32)
            block = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
            block.sample_rate, block.time_base, block.pts = 48000, Fraction(1, 48000), 1024 * i
            output.mux(audio.encode(block))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))
    return path


def hole_frames(holes: list[tuple[int, int, int, int]]) -> list[np.ndarray]:
    """One ``h w`` mask picture for each box ``top, bottom, left, right``."""
    frames = []
    for top, bottom, left, right in holes:
        frame = np.zeros(SIZE, np.uint8)
        frame[top:bottom, left:right] = 255
        frames.append(frame)
    return frames


def test_upscale_keeps_count_rate_times_and_multiplies_the_size(upscale: Callable[..., Path], clip: Path) -> None:
    info = probe(upscale("hd.mp4"))
    assert (info.size, info.rate, info.frames) == ((4 * SIZE[0], 4 * SIZE[1]), NTSC, FRAMES)
    assert packet_times(info.path) == [i / NTSC for i in range(FRAMES)]


def test_the_result_shows_the_input_in_its_colours(upscale: Callable[..., Path], clip: Path) -> None:
    """A model of random weights cannot hide: resized back, the colour fix has kept every large area."""
    output = np.stack([cv2.resize(f, (6, 4), interpolation=cv2.INTER_AREA) for f in read_pixels(upscale("hd.mkv"))])
    source = np.stack([cv2.resize(f, (6, 4), interpolation=cv2.INTER_AREA) for f in read_pixels(clip)])
    assert np.abs(output - source).mean() < 4


def test_sound_is_copied_packet_by_packet(upscale: Callable[..., Path], tmp_path: Path) -> None:
    source = clip_with_sound(tmp_path / "sound.mp4")
    output = upscale("hd.mp4", "--scale", 2, source=source)
    assert packet_bytes(output, "audio") == packet_bytes(source, "audio")
    assert len(packet_bytes(output, "audio")) > 40
    assert probe(output).frames == 25


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--height", "96"], (96, 144)),
        (["--scale", "1.5"], (48, 72)),
        (["scale=2"], (64, 96)),
        (["--scale", "3", "--codec", "libx265"], (96, 144)),
    ],
)
def test_size_of_the_output(upscale: Callable[..., Path], options: list[str], size: tuple[int, int]) -> None:
    info = probe(upscale("hd.mp4", *options))
    assert (info.size, info.frames) == (size, FRAMES)


def changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two clips ``t h w 3`` differ by more than the rounding of a 10-bit codec: ``t h w``."""
    return np.abs(a - b).max(-1) > 1.0


@pytest.mark.parametrize("kind", ["image", "folder", "video", "box"])
def test_inpainting_changes_the_hole_and_nothing_else(
    upscale: Callable[..., Path], clip: Path, tmp_path: Path, kind: str
) -> None:
    moving = kind in ("folder", "video")
    holes = [(8, 20, 10 + (2 * i if moving else 0), 22 + (2 * i if moving else 0)) for i in range(FRAMES)]
    frames = hole_frames(holes)
    options: list[object] = ["--mask", tmp_path / "mask"]
    if kind == "image":
        options = ["--mask", tmp_path / "mask.png"]
        cv2.imwrite(str(tmp_path / "mask.png"), frames[0])
    elif kind == "folder":
        (tmp_path / "mask").mkdir()
        for i, frame in enumerate(frames):
            cv2.imwrite(str(tmp_path / "mask" / f"{i}.png"), frame)
    elif kind == "video":
        options = ["--mask", tmp_path / "mask.mp4"]
        write_clip(tmp_path / "mask.mp4", [np.repeat(f[..., None] / 255.0, 3, axis=-1) for f in frames], rate=NTSC)
    else:  # the union of two boxes, in x,y,w,h
        options = ["--box", "10,8,12,6", "--box", "10,14,12,6"]
    output = upscale("filled.mkv", "--scale", 1, *LOSSLESS, *options, "feather=4", "dilate=1")
    difference = changed(read_pixels(output), read_pixels(clip))
    for i, (top, bottom, left, right) in enumerate(holes):
        inside = difference[i, top:bottom, left:right]
        assert inside.mean() > 0.9
        reach = 1 + 2 + 2  # dilation, then the feather's own growth and its blur
        difference[i, top - reach : bottom + reach, left - reach : right + reach] = False
    assert not difference.any()


def test_boxes_are_in_pixels_of_the_input(upscale: Callable[..., Path], tmp_path: Path) -> None:
    """A white block is taken away, and nothing else changes."""
    frame = np.full((*SIZE, 3), 0.2)
    frame[4:24, 30:40] = 1
    source = write_clip(tmp_path / "block.mkv", [frame] * FRAMES, codec="ffv1")
    options = ("--model", SHIPPED, *LOSSLESS, "--scale", 2)  # a trained model: a random one changes everywhere
    plain = read_pixels(upscale("plain.mkv", *options, source=source))
    boxed = read_pixels(upscale("boxed.mkv", *options, "--box", "30,4,10,20", source=source))
    changed = np.abs(plain - boxed).mean((0, 3)) > 64  # H W
    block = np.zeros_like(changed)
    block[8:48, 60:80] = True
    assert changed[block].mean() > 0.9
    assert changed[~block].mean() < 0.05


def test_compare_is_twice_as_wide_and_holds_resized_input_and_result(
    upscale: Callable[..., Path], clip: Path, tmp_path: Path
) -> None:
    output = upscale("hd.mkv", "--compare", *LOSSLESS)
    compare = tmp_path / "hd_compare.mkv"
    assert probe(compare).size == (4 * SIZE[0], 2 * 4 * SIZE[1])
    left, right = np.split(read_pixels(compare), 2, axis=2)
    assert np.abs(right - read_pixels(output)).max() < 1
    width, height = 4 * SIZE[1], 4 * SIZE[0]
    resized = np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_CUBIC) for f in read_pixels(clip)])
    assert np.abs(left - resized.clip(0, 255)).mean() < 1.5  # OpenCV's cubic has another parameter than torch's


def test_an_output_is_replaced_only_when_asked(
    upscale: Callable[..., Path], bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "hd.mp4"
    output.write_bytes(b"precious")
    assert call(infer, "--input", clip, "--output", output, "--model", bundle) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_bytes() == b"precious"
    upscale("hd.mp4", "--overwrite", "--scale", 2)
    assert probe(output).frames == FRAMES
    assert files_below(tmp_path) == {"hd.mp4"}


def test_dry_run_prints_the_plan_and_writes_nothing(
    bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", 3, "--seed", 11, "--window", 5, "--overlap", 1, "--compare", "--dry-run"]
    assert call(infer, "--input", clip, "--output", tmp_path / "new" / "hd.mp4", "--model", bundle, *options) == 0
    printed = capsys.readouterr().out
    for fact in ("sd.mp4: 48x32", "hd.mp4 192x128", "3 steps", "seed 11", "5 frames, 1 shared"):
        assert fact in printed
    assert files_below(tmp_path) == set()


def test_dry_run_finds_what_a_run_would_find(bundle: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "hd.mp4").touch()
    assert call(infer, "--input", clip, "--output", tmp_path / "hd.mp4", "--model", bundle, "--dry-run") == 2


def test_a_folder_of_frames_in_and_out(upscale: Callable[..., Path], tmp_path: Path) -> None:
    frames = [(255 * image).astype(np.uint8) for image in pan(12, *SIZE)]
    (tmp_path / "in").mkdir()
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / "in" / f"frame{i}.png"), frame[..., ::-1])  # frame10 comes after frame9
    output = upscale("out", "--scale", 1, source=tmp_path / "in")
    assert sorted(p.name for p in output.iterdir()) == [f"{i:06d}.png" for i in range(12)]
    assert np.array_equal(read_pixels(output).round(), np.stack(frames))  # no hole: every pixel is known


def test_a_picture_in_and_out(upscale: Callable[..., Path], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), (255 * pan(1, *SIZE)[0]).astype(np.uint8))
    output = upscale("big.png", source=tmp_path / "photo.png")
    assert cv2.imread(str(output)).shape == (4 * SIZE[0], 4 * SIZE[1], 3)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(upscale: Callable[..., Path]) -> None:
    """Decoded from a lossless file: x264 itself does not always write the same bytes for the same pictures."""
    options = ("--box", "10,8,20,16", "--scale", 2, *LOSSLESS)
    first, again = (read_pixels(upscale(f"{name}.mkv", *options, "--seed", 5)) for name in ("first", "again"))
    other = read_pixels(upscale("other.mkv", *options, "--seed", 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "options",
    [
        ("--steps", 3),
        ("--window", 3, "--overlap", 1),
        ("--tile", "48x64", "tile_overlap=16"),
        ("segment=4", "--overlap", 1),
        ("colour=adain",),
        ("dilate=0", "--box", "4,4,20,20"),
    ],
    ids=lambda options: str(options[0]),
)
def test_an_option_has_its_say(upscale: Callable[..., Path], options: tuple[object, ...]) -> None:
    """The clip keeps its shape; the picture changes a little, never wildly."""
    base = ("--scale", 2, *LOSSLESS)
    box = ("--box", "4,4,20,20") if "--box" in options else ()
    plain, other = read_pixels(upscale("plain.mkv", *base, *box)), read_pixels(upscale("other.mkv", *base, *options))
    assert plain.shape == other.shape
    assert 0 < np.abs(plain - other).mean() < 12


def test_noise_does_not_depend_on_how_the_clip_is_cut(upscale: Callable[..., Path]) -> None:
    """Without overlap the frames of another segment length differ by the windows that the model sees, not by noise."""
    base = ("--scale", 2, "--window", 1, "--overlap", 0, *LOSSLESS)
    whole, cut = (read_pixels(upscale(f"{n}.mkv", *base, f"segment={n}")) for n in (FRAMES, 3))
    assert np.abs(whole - cut).max() < 1


@pytest.mark.parametrize("option", [("--prompt", "a cat"), ("--negative-prompt", "a cat"), ("--guidance", 5)])
def test_a_model_without_text_refuses_what_needs_text(
    bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, object]
) -> None:
    assert call(infer, "--input", clip, "--output", tmp_path / "hd.mp4", "--model", bundle, *option) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: this model has no text encoder")
    assert files_below(tmp_path) == set()


def test_a_config_file_is_taken_and_flags_win(upscale: Callable[..., Path], tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"defaults: [{ROOT / 'configs/infer/default.yaml'}]\nscale: 2\ncodec: ffv1\n")
    info = probe(upscale("a.mkv", "--config", config))
    assert (info.size, info.codec) == ((64, 96), "ffv1")
    assert probe(upscale("b.mkv", "--config", config, "--scale", 1)).size == SIZE


@pytest.mark.parametrize(
    ("name", "key", "value"), [("fast", "preset", "veryfast"), ("quality", "crf", 14), ("default", "crf", 16)]
)
def test_a_preset_goes_by_its_name(name: str, key: str, value: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["infer.py", "--input", "sd.mp4", "--output", "hd.mp4", "--config", name])
    assert read_config(parse_arguments(), DEFAULTS)[key] == value


def test_no_preset_of_that_name(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(infer, "--input", clip, "--output", tmp_path / "hd.mp4", "--config", "fastest") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "fastest" in line


def test_as_a_user_types_it(bundle: Path, clip: Path, tmp_path: Path) -> None:
    done = spawn("infer.py", "--input", clip, "--output", tmp_path / "hd.mp4", "--model", bundle)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path / 'hd.mp4'}: {FRAMES} frames 192x128 in ")
    assert files_below(tmp_path) == {"hd.mp4"}
