"""An opened Stable Diffusion checkpoint, run by our pipeline, gives the images of diffusers' own pipelines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ldm_video.diffusion.noise import frame_noise
from ldm_video.models.open_model import FRAME_BY_FRAME, open_model
from ldm_video.models.temporal import TemporalConfig
from ldm_video.models.video_model import VideoModel
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from tests.model_support import box_hole, rand_pixels
from tests.sd_checkpoints import SD_BETAS, pipeline_of, write_pipeline

PROMPT, NEGATIVE = "the cat, the dog: sharp", "blurry"
SEED = 5
INDICES = [3, 9]  # frames of a clip
PLAIN = RestoreSettings(steps=2, guidance=3.0, seed=SEED, window=16, overlap=4, colour="none", feather=0)


def open_both(folder: Path, kind: str) -> tuple[VideoModel, Any]:
    write_pipeline(folder, kind)
    return open_model(folder), pipeline_of(folder)


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoModel, Any]:
    return open_both(tmp_path_factory.mktemp("sd") / "x4", "x4-upscaler")


@pytest.fixture(scope="module", params=["sd2-inpainting", "sd15-inpainting"])
def inpainting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoModel, Any]:
    return open_both(tmp_path_factory.mktemp("sd") / request.param, request.param)


def restore(model: VideoModel, settings: RestoreSettings, frames: Tensor, hole: Tensor, indices: list[int]) -> Tensor:
    embeddings = model.text([PROMPT, NEGATIVE])
    return Restorer(model, settings, (embeddings[:1], embeddings[1:]))(frames, hole, indices)


def call(pipeline: Any, settings: RestoreSettings, **arguments: Any) -> Tensor:
    """One image ``3 H W`` in [-1, 1] from diffusers' pipeline."""
    image = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        output_type="pt",
        **arguments,
    ).images[0]
    return image * 2 - 1


def one_frame(frame: int, shape: tuple[int, int, int], seed: int = SEED) -> Tensor:
    return frame_noise(seed, [frame], shape)  # 1 c h w


class Draws:
    """In place of a pipeline's source of noise: hands out the tensors that it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pipeline: Any) -> None:
        self.left: Iterator[Tensor] = iter(())
        monkeypatch.setattr(sys.modules[type(pipeline).__module__], "randn_tensor", self)

    def __call__(self, shape: tuple[int, ...], **_: Any) -> Tensor:
        noise = next(self.left)
        assert noise.shape == tuple(shape)
        return noise


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", [0, 250])
def test_upscaler(upscaler: tuple[VideoModel, Any], level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pipeline = upscaler
    settings = replace(PLAIN, noise_level=level)
    frames, hole = rand_pixels(2, 3, 16, 24) * 0.8, torch.zeros(2, 1, 64, 96)
    clip = restore(model, settings, frames, hole, INDICES)
    draws = Draws(monkeypatch, pipeline)
    for i, index in enumerate(INDICES):
        draws.left = iter([one_frame(index, (3, 16, 24), ~SEED)])  # the low-res pixels'
        latents = one_frame(index, (4, 16, 24))
        theirs = call(pipeline, settings, image=frames[i : i + 1] / 2 + 0.5, noise_level=level, latents=latents)
        single = restore(model, settings, frames[i : i + 1], hole[:1], [index])[0]
        assert_equal(single, theirs)
        assert_equal(clip[i], theirs)


def test_the_noise_level_matters(upscaler: tuple[VideoModel, Any]) -> None:
    model, _ = upscaler
    frames, hole = rand_pixels(1, 3, 16, 16), torch.zeros(1, 1, 64, 64)
    results = [restore(model, replace(PLAIN, noise_level=n), frames, hole, [0]) for n in (None, 0, 20, 250)]
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(results))


def test_inpainting(inpainting: tuple[VideoModel, Any]) -> None:
    model, pipeline = inpainting
    hole = box_hole(2, (64, 128), slice(16, 48), slice(24, 80))[0]  # on the latent grid
    frames = rand_pixels(2, 3, 64, 128) * 0.8
    clip = restore(model, PLAIN, frames, hole, INDICES)
    for i, index in enumerate(INDICES):
        size = {"height": 64, "width": 128, "latents": one_frame(index, (4, 8, 16))}
        theirs = call(pipeline, PLAIN, image=frames[i : i + 1] / 2 + 0.5, mask_image=hole[i : i + 1], **size)
        inside = hole[i].bool().expand_as(theirs)
        single = restore(model, PLAIN, frames[i : i + 1], hole[:1], [index])[0]
        for ours in (single, clip[i]):
            assert_equal(ours[inside], theirs[inside])
            assert torch.equal(ours[~inside], frames[i][~inside])  # known pixels are put back


def test_a_scratch_between_the_grid_is_seen(inpainting: tuple[VideoModel, Any]) -> None:
    """diffusers asks one pixel of a cell whether it is hole, and would not see this one."""
    model, _ = inpainting
    hole = box_hole(1, (64, 64), slice(0, 64), slice(35, 37))[0]
    frames = rand_pixels(1, 3, 64, 64)
    one, two = (
        restore(model, PLAIN, torch.where(hole.bool(), torch.full_like(frames, value), frames), hole, [0])
        for value in (-1.0, 1.0)
    )
    assert torch.equal(one, two)  # what the scratch hides has no say
    assert (one - frames)[hole.bool().expand_as(frames)].abs().mean() > 0.01


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.75), (4, 1.0), (7, 0.5)])
def test_text_to_image_from_the_evidence(
    steps: int, strength: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion 1.5, which was not trained with evidence, starts from it, as image to image does."""
    model, _ = open_both(tmp_path / "sd15", "sd15")
    pipeline = pipeline_of(tmp_path / "sd15", "StableDiffusionImg2ImgPipeline")
    settings = replace(PLAIN, steps=steps, strength=strength)
    frames, hole = rand_pixels(2, 3, 16, 32) * 0.8, torch.zeros(2, 1, 64, 128)
    clip = restore(model, settings, frames, hole, INDICES)
    if strength == 1.0:
        pipeline = pipeline_of(tmp_path / "sd15")
    draws = Draws(monkeypatch, pipeline)
    guess = torch.nn.functional.interpolate(frames, (64, 128), mode="bicubic", antialias=True).clamp(-1, 1)
    for i, index in enumerate(INDICES):
        noise = one_frame(index, (4, 8, 16))
        if strength == 1.0:
            arguments: dict[str, Any] = {"height": 64, "width": 128, "latents": noise}
        else:
            arguments = {"image": guess[i : i + 1] / 2 + 0.5, "strength": strength}
            draws.left = iter([noise])
        assert_equal(clip[i], call(pipeline, settings, **arguments))


def test_an_early_scheduler_is_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``clip_sample`` true and ``steps_offset`` 0, which diffusers' own pipeline does not obey either."""
    write_pipeline(tmp_path / "sd15", "sd15")
    early = {**SD_BETAS, "_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 0}
    (tmp_path / "sd15/scheduler/scheduler_config.json").write_text(json.dumps({**early, "set_alpha_to_one": False}))
    index = json.loads((tmp_path / "sd15/model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (tmp_path / "sd15/model_index.json").write_text(json.dumps(index))
    model = open_model(tmp_path / "sd15", temporal=FRAME_BY_FRAME)
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path / "sd15")
    pipeline.set_progress_bar_config(disable=True)
    settings = replace(PLAIN, steps=4, strength=0.75)
    frames = rand_pixels(1, 3, 16, 32) * 0.8
    guess = torch.nn.functional.interpolate(frames, (64, 128), mode="bicubic", antialias=True).clamp(-1, 1)
    draws = Draws(monkeypatch, pipeline)
    draws.left = iter([one_frame(0, (4, 8, 16))])
    theirs = call(pipeline, settings, image=guess / 2 + 0.5, strength=0.75)
    ours = restore(model, settings, frames, torch.zeros(1, 1, 64, 128), [0])[0]
    assert_equal(ours, theirs)


def test_tiles_take_their_part_of_what_was_made_once(upscaler: tuple[VideoModel, Any], tmp_path: Path) -> None:
    write_pipeline(tmp_path / "sd", "sd15-inpainting")
    inpainting = open_model(tmp_path / "sd", temporal=FRAME_BY_FRAME)
    for model, low, level in ((upscaler[0], (16, 32), 20), (inpainting, (64, 128), None)):
        frames, hole = rand_pixels(1, 3, *low), box_hole(1, (64, 128), slice(32, 64), slice(8, 40))[0]
        settings = replace(PLAIN, guidance=1.0, noise_level=level, tile_overlap=32)
        whole = restore(model, settings, frames, hole, [0])
        covered = restore(model, replace(settings, tile=(64, 128)), frames, hole, [0])
        assert torch.equal(covered, whole)
        cut = restore(model, replace(settings, tile=(64, 64)), frames, hole, [0])
        assert cut.shape == whole.shape
        assert 0 < (cut - whole).abs().mean() < 0.5 * whole.abs().mean()


def test_no_temporal_layers_give_the_same_bits(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "sd", "x4-upscaler")
    frames, hole = rand_pixels(2, 3, 16, 16), torch.zeros(2, 1, 64, 64)
    models = [open_model(tmp_path / "sd", temporal=config) for config in (TemporalConfig(), FRAME_BY_FRAME)]
    assert sum(1 for _ in models[0].denoiser.temporal_parameters()) > 100
    assert not list(models[1].denoiser.temporal_parameters())
    outputs = [restore(model, replace(PLAIN, noise_level=20), frames, hole, [0, 1]) for model in models]
    assert torch.equal(*outputs)
