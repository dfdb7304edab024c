"""``--memory``: what is counted, what is chosen, and that a process stays below its limit."""

from __future__ import annotations

import multiprocessing
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import infer
from ldm_video.core import memory
from ldm_video.core.errors import UserError
from ldm_video.core.memory import peak_resident
from ldm_video.diffusion.windows import split
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.pipeline.memory_costs import Costs, LiveBytes, _kilobytes, _reclaimable, free_memory, measure_costs
from ldm_video.pipeline.memory_plan import (
    Choice,
    Demand,
    choose,
    expected_peak,
    in_words,
    parse_memory,
    tile_sizes,
)
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from tests.cli_support import call, tiny_model
from tests.film_support import run_infer
from tests.fork_support import forks
from tests.model_support import rand_pixels, small_text_model
from tests.video_io_support import pan, write_clip

FAST = ("preset=ultrafast", "cuts=off", "segment=40", "--overlap", 0)
Peak = Callable[..., tuple[int | None, int, list[str]]]
COSTS = Costs(base=10**9, sample=110, decode=180)  # about the shipped model's
FULL_HD = Demand(size=(1088, 1920), window=12, overlap=4, segment=32, least=13, frames=None, multiple=32,
                 tile_overlap=128, per_frame=98 * 1088 * 1920, fixed=1.1e9)  # fmt: skip

# Amounts.


@pytest.mark.parametrize(
    ("text", "amount"), [("8GB", 8 * 10**9), ("7.5 GiB", 15 * 2**29), ("900mb", 900 * 10**6), ("1MiB", 2**20)]
)
def test_amounts(text: str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "8TB", "much"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not an amount such as 8GB"):
        parse_memory(text)


def test_an_amount_that_is_said_can_be_given() -> None:
    for amount in (50 * 10**6, 950 * 10**6, 10**9, 1_350_000_000, 64 * 10**9):
        assert parse_memory(in_words(amount)) == amount


# The choice.


def seen(demand: Demand, choice: Choice) -> float:
    """Pixels that the model sees for one of the output, counted window by window."""
    pixels = 1.0
    for length, side in zip(demand.size, choice.tile or demand.size, strict=True):
        pixels *= sum(window.size for window in split(length, side, demand.tile_overlap)) / length
    return pixels * choice.segment / (choice.segment - demand.overlap)


def test_enough_memory_changes_nothing() -> None:
    whole = choose(10**12, COSTS, FULL_HD)
    assert (whole.tile, whole.segment) == (None, 32)
    # base + fixed + 32 frames + 12 whole frames in the decoder
    assert whole.peak == pytest.approx(1e9 + 1.1e9 + 32 * 98 * 1088 * 1920 + 180 * 12 * 1088 * 1920)


def test_less_memory_is_more_work_and_never_exceeded() -> None:
    limits = [5_400_000_000 + 300_000_000 * i for i in range(30)]
    choices = [choose(limit, COSTS, FULL_HD) for limit in limits]
    work = [seen(FULL_HD, choice) for choice in choices]
    assert work == sorted(work, reverse=True)
    assert work[0] > 1.5 * work[-1]
    for limit, choice in zip(limits, choices, strict=True):
        assert expected_peak(COSTS, FULL_HD, choice.segment, choice.tile) <= limit
        assert 13 <= choice.segment <= 32
        for tile_side, side in zip(choice.tile or FULL_HD.size, FULL_HD.size, strict=True):
            assert tile_side == side or (tile_side % 32 == 0 and 256 <= tile_side < side + 32)


def test_the_choice_is_the_least_work_of_all_squares_too() -> None:
    """Against a search over every square tile that the rules allow."""
    for limit in (5_500_000_000, 6_500_000_000, 8_000_000_000):
        best = min(
            seen(FULL_HD, Choice((side, side), segment, 0))
            for side in range(256, 1088, 32)
            for segment in range(13, 33)
            if expected_peak(COSTS, FULL_HD, segment, (side, side)) <= limit
        )
        assert seen(FULL_HD, choose(limit, COSTS, FULL_HD)) <= best


def test_too_little_is_one_line_with_the_least_that_does() -> None:
    with pytest.raises(UserError) as refusal:
        choose(10**9, COSTS, FULL_HD)
    found = re.search(r"too little for 1920x1088 .* the least is --memory (\S+)$", str(refusal.value))
    assert found is not None
    least = parse_memory(found[1])
    choose(least, COSTS, FULL_HD)
    with pytest.raises(UserError):
        choose(least - 100 * 10**6, COSTS, FULL_HD)


def test_a_picture_is_one_frame_and_small_ones_have_no_tiles() -> None:
    picture = replace(FULL_HD, frames=1)
    assert expected_peak(COSTS, picture, 32, None) == pytest.approx(2.1e9 + (98 + 180) * 1088 * 1920)
    assert list(tile_sizes(replace(FULL_HD, size=(256, 224)))) == [None]


def test_a_codec_that_takes_few_pixels_at_once_needs_less() -> None:
    batched = replace(COSTS, decode=2_000, at_once=2**20)
    assert expected_peak(batched, FULL_HD, 13, (512, 512)) == pytest.approx(
        2.1e9 + 13 * FULL_HD.per_frame + 2_000 * 2**20
    )


# What is counted.


def test_living_bytes() -> None:
    weight = torch.zeros(1000)
    with LiveBytes() as live:
        a = weight.view(10, 100).t()  # somebody else's memory
        b = a + 1  # 4000 bytes
        c = b * 2 + 1  # 4000 more, and 4000 for a moment
        del a, b, c
        _ = weight + 1
    assert live.peak == 12_000


@pytest.mark.parametrize(("frames", "tile"), [(4, None), (16, None), (8, (64, 96))])
def test_the_sum_holds_for_a_segment(frames: int, tile: tuple[int, int] | None) -> None:
    """The tensors of a segment that is 30 times the probe: within the sum, and not far below it."""
    size = (128, 192)
    restorer = Restorer(tiny_model(), RestoreSettings(window=4, overlap=1, tile=tile, tile_overlap=16))
    costs = replace(measure_costs(restorer, 4, 16, (4, 4)), base=0)
    demand = replace(FULL_HD, size=size, window=4, segment=16, least=4, fixed=0, per_frame=(90 + 130 / 16) * 128 * 192)
    with torch.no_grad(), LiveBytes() as live:
        restorer(torch.zeros(frames, 3, 32, 48), torch.zeros(frames, 1, *size), range(frames))
    expected = expected_peak(costs, demand, frames, tile)
    assert 0.4 * expected < live.peak < expected


@pytest.mark.parametrize("every", [1, 16])
@pytest.mark.parametrize(("frames", "scale"), [(1, 4), (1, 2), (3, 2), (12, 4), (24, 2)])
def test_the_sum_holds_for_a_codec_that_asks_a_restorer(frames: int, scale: int, every: int) -> None:
    """What it takes is for the frame that is asked about, not for every frame of the window."""
    size = (128, 192)
    low = size[0] // scale, size[1] // scale
    model = tiny_model()
    model.codec = PairedCodec(model.codec.latent_channels, (8, 8, 8, 4), (1, 1, 1), (64, 64), 1, every=every)
    restorer = Restorer(model, RestoreSettings(window=12, overlap=1))
    demand = replace(FULL_HD, size=size, frames=frames, fixed=0, per_frame=(90 + 130 / scale**2) * size[0] * size[1])
    costs = replace(measure_costs(restorer, min(12, demand.longest), demand.longest, (scale, scale)), base=0)
    with torch.no_grad(), LiveBytes() as live:
        restorer(rand_pixels(frames, 3, *low), torch.zeros(frames, 1, *size), range(frames))
    expected = expected_peak(costs, demand, frames, None)
    assert 0.5 * expected < live.peak < expected


def test_the_longest_segment() -> None:
    assert FULL_HD.longest == 32
    assert replace(FULL_HD, frames=40).longest == 32
    assert replace(FULL_HD, frames=1).longest == 1


def test_a_model_that_decodes_in_batches_says_so(tmp_path: Path) -> None:
    model = small_text_model(tmp_path)
    prompts = model.text(["a", "b"]) if model.text is not None else torch.empty(0)
    text = prompts[:1], prompts[1:]
    costs = measure_costs(Restorer(model, RestoreSettings(strength=0.5, guidance=3.0), text), 2, 2, (4, 4))
    assert costs.at_once == 2**16  # on a CPU
    assert min(costs.sample, costs.decode, costs.encode) > 12  # at least the pixels themselves
    alone = measure_costs(Restorer(model, RestoreSettings(), text), 2, 2, (4, 4))
    assert alone.encode == 0


def test_what_is_free_is_shared_with_the_processes_of_a_machine() -> None:
    device = torch.device("cpu")
    alone, two, four = (free_memory(device, {"LOCAL_WORLD_SIZE": text}) for text in ("", "2", "4"))
    assert (alone - two) == pytest.approx(2 * (two - four), rel=0.2)
    assert alone > two > four > 0


def test_what_is_free_is_what_control_groups_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm_video.pipeline.memory_costs._cgroup_room", lambda: iter([10**8]))
    room = free_memory(torch.device("cpu"), {}) - _kilobytes(Path("/proc/self/status"), "VmRSS")
    assert room == pytest.approx(0.9e8, abs=5e6)


@pytest.mark.parametrize(("own", "above", "room"), [("max", "max", 8_192), ("500", "max", 400), ("900", "600", 300)])
def test_the_tightest_group(own: str, above: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's group lies in others, as under a batch system. A folder stands for what Linux tells of both."""
    files = {"meminfo": "MemAvailable: 8 kB", "self/status": "VmRSS: 1 kB", "self/cgroup": "1:cpu:/\n0::/a/b/c"}
    for group, limit, used in (("a/memory", above, "400"), ("a/b/memory", "max", "9"), ("a/b/c/memory", own, "200")):
        files |= {f"{group}.max": limit, f"{group}.current": used, f"{group}.stat": "anon 7\ninactive_file 100"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    # What is below /proc lies there by its name, and the folder itself is /sys/fs/cgroup.
    monkeypatch.setattr("ldm_video.pipeline.memory_costs.Path", lambda name: tmp_path / name.partition("/proc/")[2])
    assert free_memory(torch.device("cpu"), {}) == int(0.9 * room) + 1024


def test_files_that_are_kept_while_there_is_room_are_free(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("anon 7\nfile 500\ninactive_anon 9\ninactive_file 400\nactive_file 100\n")
    assert _reclaimable(tmp_path) == 400


def test_windows_has_no_count_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor has it the module that infer.py must not ask for."""
    monkeypatch.setitem(sys.modules, "resource", None)
    alone = runpy.run_path(memory.__file__)
    alone["peak_resident"].__globals__["_STATUS"] = Path("absent")
    assert alone["peak_resident"]() == 0


def _bases_around_a_clip(result: Any) -> None:
    restorer = Restorer(tiny_model(), RestoreSettings())
    first, peak = measure_costs(restorer, 2, 2, (4, 4)).base, peak_resident()
    torch.ones(2 * 10**8, dtype=torch.uint8)
    result.put((first, measure_costs(restorer, 2, 2, (4, 4)).base, peak_resident() - peak))


def test_what_one_clip_leaves_behind_is_not_counted_for_the_next() -> None:
    """In a process of its own: a peak that an earlier test has reached would hide the clip's."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_bases_around_a_clip, args=(result,))
    process.start()
    first, second, clip = result.get(timeout=120)
    process.join()
    assert clip > 10**8
    assert second == first


# infer.py.


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "sd.mp4", pan(40, 128, 192))


@pytest.fixture
def peak(clip: Path, bundle: Path, tmp_path: Path) -> Iterator[Peak]:
    """``peak(*options)``: run infer.py in a process of its own; its exit code, peak in bytes and lines."""

    def run(*options: object) -> tuple[int | None, int, list[str]]:
        arguments = [
            "--input",
            clip,
            "--output",
            tmp_path / "hd.mkv",
            "--model",
            bundle,
            "--overwrite",
            *FAST,
            *options,
        ]
        printed = tmp_path / "printed.txt"
        printed.write_text("")
        process = forks.Process(target=run_and_tell, args=([*map(str, arguments)], str(printed)))
        process.start()
        process.join()
        *lines, last = printed.read_text().splitlines()
        return process.exitcode, int(last), lines

    yield run


def run_and_tell(arguments: list[str], printed: str) -> None:
    """What the process does; its last line is its peak."""
    try:
        run_infer(arguments, {}, printed)
    finally:
        with open(printed, "a") as file:
            file.write(f"{peak_resident()}\n")


@pytest.mark.slow
def test_a_process_stays_below_its_limit(peak: Peak) -> None:
    """768x512 out, 40 frames. Without a limit it takes more than either."""
    code, _, lines = peak("--memory", "1MB")
    assert code == 2
    (line,) = lines
    found = re.search(r"^error: --memory 1MB is too little for 768x512 .* --memory (\S+)$", line)
    assert found is not None, line
    least = parse_memory(found[1])
    _, unlimited, _ = peak()
    assert unlimited > least + 200 * 10**6
    for limit in (least + 100 * 10**6, least + 200 * 10**6):
        code, used, lines = peak("--memory", in_words(limit))
        assert code == 0, lines
        assert 0.5 * limit < used < limit, (used, limit)


def test_a_dry_run_prints_the_tile(
    clip: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("--input", clip, "--output", tmp_path / "hd.mkv", "--model", bundle, "--dry-run", "tile_overlap=32")
    assert call(infer, *command, "--memory", "1MB", "segment=19", "--window", 16) == 2
    least = capsys.readouterr().err.split()[-1]
    assert call(infer, *command, "--memory", least, "segment=19", "--window", 16) == 0
    printed = capsys.readouterr()
    chosen = re.search(r"with (tile (\d+)x(\d+)|whole frames), segments of (\d+) frames", printed.err)
    assert chosen is not None
    tile = "none" if chosen[2] is None else f"({chosen[2]}, {chosen[3]})"
    assert f"tile {tile}" in printed.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--memory", "8GB", "--tile", "512x512"), "leave --tile out"),
        (("--memory", "auto", "--share", "1/2"), "may differ from process to process"),
        (("--memory", "8"), "not an amount such as 8GB"),
    ],
)
def test_refusals(
    clip: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], reason: str
) -> None:
    assert call(infer, "--input", clip, "--output", tmp_path / "hd.mkv", "--model", bundle, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
