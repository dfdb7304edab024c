"""Prompts by frames: the file, the cross-fades, what each frame of a segment is given, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import infer
from ldm_video.core.errors import UserError
from ldm_video.models.open_model import open_model
from ldm_video.models.video_model import VideoModel
from ldm_video.pipeline.job import Job, Role, identify
from ldm_video.pipeline.journal import changes
from ldm_video.pipeline.prompts import Prompts, read_prompts
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from tests.cli_support import call, read_pixels, write_tiny_bundle
from tests.model_support import box_hole, rand_pixels, randn, small_text_model
from tests.sd_checkpoints import write_pipeline

SETTINGS = RestoreSettings(steps=2, guidance=3.0, seed=3, window=4, overlap=2, feather=4, colour="none")


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_lines(tmp_path: Path) -> None:
    file = write(tmp_path, "\ufeff# shots\r\n\r\n  3 : a red car: fast # and loud\n120:\n  # later\n1200:a dog")
    assert read_prompts(file, 8) == Prompts((3, 120, 1200), ("a red car: fast # and loud", "", "a dog"), 8)


def test_a_prompt_that_is_repeated_goes_on(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path, "0: a\n5: a\n9: b\n12: b\n20: a"), 4) == Prompts((0, 9, 20), ("a", "b", "a"), 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0: a\n\na blue car", "line 3: 'a blue car' is not of the form 120: a blue car"),
        ("0: a\n-5: b", "line 2: '-5: b' is not"),
        ("0.5: b", "line 1: '0.5: b' is not"),
        ("0: a\n8: b\n8: c", "line 3: frame 8 comes after frame 8; put the lines in order"),
        ("8: a\n# b\n3: a", "line 3: frame 3 comes after frame 8"),
        ("x" * 500, f"'{'x' * 40}...' is not"),
        ("9" * 5000 + ": a", "is not of the form"),
        ("# nothing\n\n", "has no prompts"),
        (b"0: caf\xe9", "it is not UTF-8"),
    ],
)
def test_bad_files(text: str | bytes, words: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_prompts(file, 8)
    assert str(file) in str(error.value) and words in str(error.value)


@pytest.mark.parametrize("name", ["none.txt", "."])
def test_what_is_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .* give a text file"):
        read_prompts(tmp_path / name, 8)


@pytest.mark.parametrize(
    ("prompts", "frames", "expected"),
    [
        (Prompts((0, 10), ("a", "b"), 4), range(6, 14), [0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1]),
        (Prompts((0, 10), ("a", "b"), 5), range(6, 14), [0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1]),
        (Prompts((0, 10), ("a", "b"), 1), range(8, 12), [0, 0, 1, 1]),
        (Prompts((0, 10), ("a", "b"), 0), range(8, 12), [0, 0, 1, 1]),
        (Prompts((7, 10), ("a", "b"), 0), [0, 6, 7, 10], [0, 0, 0, 1]),  # the first holds before its frame
        (Prompts((0, 10, 12), ("a", "b", "c"), 8), range(8, 15), [0, 0.25, 0.75, 1.25, 1.75, 2, 2]),  # b holds for two
        (Prompts((0, 2), ("a", "b"), 8), range(4), [0, 0.25, 0.75, 1]),
        (Prompts((0,), ("a",), 8), [0, 10**9], [0, 0]),
        (Prompts((0, 10**9), ("a", "b"), 2), [10**9 - 2, 10**9 - 1, 10**9, 10**12], [0, 0.25, 0.75, 1]),
    ],
    ids=str,
)
def test_where_a_frame_stands(prompts: Prompts, frames: Sequence[int], expected: list[float]) -> None:
    torch.testing.assert_close(prompts.position(frames), torch.tensor(expected, dtype=torch.float64))


def test_embeddings_are_mixed_by_their_shares() -> None:
    starts = (0, 12, 15, 40)
    embeddings, frames = randn(4, 5, 3), range(60)
    text = Prompts(starts, ("a", "b", "c", "d"), 6).text_at(embeddings, frames)
    assert text.shape == (60, 5, 3)
    for frame in frames:
        shares = np.zeros(4)  # of each prompt; counted in small steps of the time that a blend averages over
        for before, (i, start) in zip((12, 3, 25), enumerate(starts[1:], start=1), strict=True):
            width = min(6, before, {1: 3, 2: 25, 3: 99}[i])
            if start - width / 2 < frame + 0.5 < start + width / 2:
                share = (frame + 0.5 - (start - width / 2)) / width
                shares[i - 1 : i + 1] = 1 - share, share
        if not shares.any():
            shares[sum(frame >= start for start in starts) - 1] = 1
        expected = (torch.from_numpy(shares).float()[:, None, None] * embeddings).sum(0)
        torch.testing.assert_close(text[frame], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_embeddings_stay_as_they_are(dtype: torch.dtype) -> None:
    embedding = randn(1, 5, 3).to(dtype)
    text = Prompts((0, 6, 9), ("a", "b", "c"), 7).text_at(embedding.expand(3, -1, -1), range(20))
    assert text.dtype == dtype and torch.equal(text, embedding.expand(20, -1, -1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    return small_text_model(tmp_path_factory.mktemp("vocabulary"))


def clip(frames: int) -> tuple[Tensor, Tensor]:
    """Low-res frames ``t 3 h w`` and a hole ``t 1 H W``."""
    return rand_pixels(frames, 3, 8, 12) * 0.6, box_hole(frames, (32, 48), slice(8, 20), slice(0, 16))[0]


def restore(model: VideoModel, prompts: Prompts, indices: Sequence[int], **settings: object) -> Tensor:
    text = model.text([*prompts.texts, "c"])
    frames, hole = clip(28)
    restorer = Restorer(model, replace(SETTINGS, **settings), (text[:-1], text[-1:]), prompts)
    return restorer(frames[indices], hole[indices], indices)


@pytest.mark.parametrize("settings", [{}, {"guidance": 1.0}, {"tile": (32, 32), "tile_overlap": 16}], ids=str)
def test_one_prompt_for_all_frames_is_the_prompt_itself(model: VideoModel, settings: dict) -> None:
    frames, hole = clip(28)
    indices = list(range(20, 27))
    text = model.text(["a b", "c"])
    restorer = Restorer(model, replace(SETTINGS, **settings), (text[:1], text[1:]))
    plain = restorer(frames[indices], hole[indices], indices)
    assert torch.equal(restore(model, Prompts((0,), ("a b",), 8), indices, **settings), plain)
    thrice = restore(model, Prompts((0, 22, 25), ("a b",) * 3, 8), indices, **settings)
    torch.testing.assert_close(thrice, plain, atol=1e-5, rtol=0)  # other shapes, other sums in another order
    assert largest_by_frame(restore(model, Prompts((0,), ("c c",), 8), indices, **settings) - plain).min() > 1e-3


def test_far_from_a_border_a_frame_has_its_own_prompt(model: VideoModel) -> None:
    """Windows of one frame, so that no other frame's prompt reaches it through temporal layers."""
    alone = {"window": 1, "overlap": 0}
    indices = list(range(4, 16))
    both = restore(model, Prompts((0, 10), ("a", "b b"), 4), indices, **alone)
    first, second = (restore(model, Prompts((0,), (text,), 4), indices, **alone) for text in ("a", "b b"))
    torch.testing.assert_close(both[:4], first[:4], atol=1e-5, rtol=0)
    torch.testing.assert_close(both[8:], second[8:], atol=1e-5, rtol=0)
    for other in (first, second):
        assert largest_by_frame((both - other)[4:8]).min() > 1e-4


def test_a_long_prompt_changes_no_frame_that_has_a_short_one(upscaler: Path) -> None:
    model, alone = open_model(upscaler), {"window": 1, "overlap": 0}
    long, indices = "the cat " * 50, list(range(3))
    short = restore(model, Prompts((0,), ("the dog",), 0), indices, **alone)
    both = restore(model, Prompts((0, 2), ("the dog", long), 0), indices, **alone)
    torch.testing.assert_close(both[:2], short[:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(both[2:], restore(model, Prompts((0,), (long,), 0), indices, **alone)[2:])
    assert largest_by_frame((both - short)[2:]).min() > 1e-3


def test_frames_do_not_depend_on_the_segment_they_are_in(model: VideoModel) -> None:
    prompts, alone = Prompts((0, 5, 8, 14), ("a", "b b", "c", "a b"), 6), {"window": 1, "overlap": 0, "steps": 1}
    whole = restore(model, prompts, list(range(18)), **alone)
    for start, stop in [(0, 7), (7, 18), (3, 6), (6, 13)]:
        segment = restore(model, prompts, list(range(start, stop)), **alone)
        assert torch.equal(segment, whole[start:stop])
    moved = restore(model, replace(prompts, starts=(0, 6, 9, 15)), list(range(18)), **alone)
    assert largest_by_frame((moved - whole)[4:10]).min() > 1e-4


def largest_by_frame(difference: Tensor) -> Tensor:
    return difference.abs().amax(dim=(1, 2, 3))


def test_a_job_with_other_prompts_is_another_job(model: VideoModel, tiny_video: Path, tmp_path: Path) -> None:
    def identity(prompts: Prompts | None) -> dict:
        text = model.text([*(prompts.texts if prompts else ["a"]), "c"])
        job = Job(tiny_video, tmp_path / "hd.mp4", (32, 32))
        found = identify(job, Restorer(model, SETTINGS, (text[:-1], text[-1:]), prompts), Role())
        return json.loads(json.dumps(found))  # as the journal keeps it

    kept = Prompts((0, 10), ("a", "b"), 8)
    assert changes(identity(kept), identity(kept)) == []
    others = (None, replace(kept, starts=(0, 11)), replace(kept, texts=("a", "c")), replace(kept, blend=4))
    identities = [identity(prompts) for prompts in (kept, *others)]
    for a, b in [*pairwise(identities), *((identities[0], other) for other in identities[1:])]:
        assert "prompt_file" in changes(a, b)


def test_a_job_with_another_variant_is_another_job(model: VideoModel, tiny_video: Path, tmp_path: Path) -> None:
    """Both variants lie in one folder: its files do not tell which of them are used."""
    job = Job(tiny_video, tmp_path / "hd.mp4", (32, 32))
    exact, half = (identify(job, Restorer(model, SETTINGS), Role(variant=name)) for name in (None, "fp16"))
    assert changes(exact, half) == ["variant"]


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("sd") / "x4", "x4-upscaler")


FAST = ("--steps", 1, "--device", "cpu", "--codec", "ffv1", "segment=4", "overlap=0", "chain=1", "window=3")


def test_command_line(upscaler: Path, write_video: Callable[..., Path], tmp_path: Path) -> None:
    low, number = write_video(tmp_path / "low.mp4", frames=6, size=(16, 16)), iter(range(9))

    def run(*options: object) -> np.ndarray:
        output = tmp_path / f"{next(number)}.mkv"
        assert call(infer, "--input", low, "--output", output, "--model", upscaler, *FAST, *options) == 0
        return read_pixels(output)

    cat, dog = run("--prompt", "the cat"), run("--prompt", "the dog")
    np.testing.assert_array_equal(run("--prompt-file", write(tmp_path, "0: the cat\n3: the cat")), cat)
    file = write(tmp_path, "0: the cat\n# its enemy\n3: the dog\n")
    sharp = run("--prompt-file", file, "prompt_blend=0")
    np.testing.assert_array_equal(sharp, np.concatenate([cat[:3], dog[3:]]))
    mixed = run("--prompt-file", file, "prompt_blend=2")
    np.testing.assert_array_equal(mixed[[0, 1, 4, 5]], sharp[[0, 1, 4, 5]])
    assert (mixed != sharp)[2:4].any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prompt", "a cat"), "give either --prompt or --prompt-file, and not both"),
        (("prompt_blend=-1",), "prompt_blend is -1; give 0 or more"),
        (("prompt_blend=some",), "not a whole number"),
        ((), "this model has no text encoder and takes no prompt"),
    ],
)
def test_bad_command_lines(
    options: tuple[str, ...], words: str, tiny_video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, file = write_tiny_bundle(tmp_path / "tiny"), write(tmp_path, "0: a cat")
    given = ("--input", tiny_video, "--output", tmp_path / "hd.mp4", "--model", bundle, "--prompt-file", file)
    assert call(infer, *given, *options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and words in line
