"""The restorer: windows, tiles, guidance, noise and known pixels, on small random models and on pointwise oracles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from einops import rearrange
from torch import Tensor, nn

from ldm_video.core.evidence import Evidence, EvidenceLayout, build_evidence
from ldm_video.models.codec import Codec
from ldm_video.models.video_model import VideoModel
from ldm_video.pipeline.composite import dilate
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from tests.model_support import box_hole, rand_pixels, randn, small_text_model, small_video_model

PLAIN = RestoreSettings(steps=2, seed=3, window=16, overlap=2, tile_overlap=16, feather=4, colour="none")


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return small_video_model()


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    return small_text_model(tmp_path_factory.mktemp("vocabulary"))


def clip(frames: int, low: tuple[int, int], scale: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, list[int]]:
    """Low-res frames ``t 3 h w``, a hole off the centre ``t 1 H W``, frame numbers from 7."""
    height, width = low[0] * scale, low[1] * scale
    hole = box_hole(frames, (height, width), slice(height // 4, height // 2), slice(0, width // 3))[0]
    return rand_pixels(frames, 3, *low, seed=seed) * 0.6, hole, list(range(7, 7 + frames))


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


class PointwiseCodec(Codec):
    """Exact and without any neighbourhood: pixels are the latent's cells, lit by the evidence of the same pixel."""

    factor = 4
    latent_channels = 3 * 4**2

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.2))

    def encode(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        return F.pixel_unshuffle(pixels, 4)

    def decode(self, latents: Tensor, evidence: Evidence) -> Tensor:
        pixels = rearrange(latents, "b t (c f g) h w -> b t c (h f) (w g)", f=4, g=4)
        return self.gain * pixels * (1 + evidence.hole) + 0.5 * evidence.canvas

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())


class PointwiseModel(nn.Module):
    """Oracle of the plumbing: what it says of a cell depends on that cell alone, its evidence, time and text."""

    shared_noise = 0.25
    multiple = 8

    def __init__(self) -> None:
        super().__init__()
        self.codec = PointwiseCodec()
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
        self.layout = EvidenceLayout("space_to_depth", 4)
        self.mix = nn.Parameter(randn(48, self.layout.channels) * 0.1)

    def encode_canvas(self, evidence: Evidence) -> None:
        return None

    def noise_lowres(self, evidence: Evidence, level: Tensor, noise: Tensor) -> Evidence:
        return evidence

    def predict(
        self,
        noisy: Tensor,
        timestep: Tensor | float,
        evidence: Evidence,
        text: Tensor | None = None,
        noise_level: Tensor | None = None,
        canvas: Tensor | None = None,
    ) -> Tensor:
        said = torch.einsum("oi,btihw->btohw", self.mix, self.layout(evidence))
        if text is not None:  # b n d
            said = said * (1 + text.mean(dim=(1, 2)).view(-1, 1, 1, 1, 1))
        return torch.tanh(noisy) * (1 + float(timestep) / 1000) + said


every_cut = pytest.mark.parametrize(
    "cut",
    [
        {"window": 4, "overlap": 2},
        {"window": 3, "overlap": 0},
        {"window": 1, "overlap": 0},
        {"tile": (16, 24), "tile_overlap": 8},
        {"tile": (24, 16), "tile_overlap": 10},  # not a multiple of the latent grid
        {"tile": (8, 8), "tile_overlap": 0},
        {"window": 4, "overlap": 1, "tile": (16, 16), "tile_overlap": 4},
    ],
    ids=str,
)


@every_cut
def test_windows_and_tiles_do_not_change_a_pointwise_model(cut: dict) -> None:
    frames, hole, indices = clip(9, (13, 10))
    settings = replace(PLAIN, steps=3, colour="wavelet")
    whole = Restorer(PointwiseModel(), settings)(frames, hole, indices)
    parts = Restorer(PointwiseModel(), replace(settings, **cut))(frames, hole, indices)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    assert whole.std() > 0.1


@every_cut
def test_windows_and_tiles_do_not_change_a_guided_pointwise_model(cut: dict) -> None:
    """What it says grows evenly with the text, so guidance is the text that lies as far beyond the prompt."""
    frames, hole, indices = clip(9, (13, 10))
    settings = replace(PLAIN, steps=3, colour="wavelet", guidance=3.0)
    prompt, negative = randn(1, 2, 3, seed=1), randn(1, 2, 3, seed=2)
    beyond = negative + 3 * (prompt - negative)
    whole = Restorer(PointwiseModel(), replace(settings, guidance=1.0), (beyond, negative))(frames, hole, indices)
    parts = Restorer(PointwiseModel(), replace(settings, **cut), (prompt, negative))(frames, hole, indices)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    assert largest(whole - Restorer(PointwiseModel(), settings, (prompt, prompt))(frames, hole, indices)) > 0.01


@pytest.mark.parametrize("low", [(8, 12), (5, 7), (1, 1), (9, 3)])
@pytest.mark.parametrize("colour", ["wavelet", "adain"])
def test_shape_and_range_at_odd_sizes(model: VideoModel, low: tuple[int, int], colour: str) -> None:
    frames, hole, indices = clip(3, low, scale=3)
    output = Restorer(model, replace(PLAIN, colour=colour))(frames, hole, indices)
    assert output.shape == (3, 3, 3 * low[0], 3 * low[1])
    assert output.dtype == torch.float32
    assert bool((output.abs() <= 1).all())
    if colour == "wavelet":  # AdaIN makes a frame as flat as its evidence, which has one colour at 1x1
        assert largest(output[1:] - output[:1]) > 1e-3


def test_output_is_clipped(model: VideoModel) -> None:
    loud = small_video_model()
    with torch.no_grad():
        loud.codec.decoder.exit.bias.fill_(3.0)
    frames, hole, indices = clip(1, (8, 8))
    assert torch.equal(Restorer(loud, PLAIN)(frames, hole, indices), torch.ones(1, 3, 32, 32))


def test_one_call_is_the_sampler_and_the_decoder_by_hand(model: VideoModel) -> None:
    from ldm_video.diffusion.noise import frame_noise

    frames, hole, indices = clip(2, (8, 8))
    evidence = build_evidence(frames[None], hole[None])
    x = frame_noise(3, indices, (4, 4, 4), model.shared_noise)[None]
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    for timestep in scheduler.timesteps:
        x = scheduler.step(model.predict(x, timestep, evidence), timestep, x).prev_sample
    expected = model.codec.decode(x, evidence).clamp(-1, 1)[0]
    torch.testing.assert_close(Restorer(model, PLAIN)(frames, hole, indices), expected, atol=1e-5, rtol=0)


def test_no_steps_are_the_decoder_with_latents_of_zero(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, hole, indices = clip(2, (8, 8))
    expected = model.codec.decode(torch.zeros(1, 2, 4, 4, 4), build_evidence(frames[None], hole[None]))
    monkeypatch.setattr(VideoModel, "predict", None)  # nobody asks for it
    result = Restorer(model, replace(PLAIN, steps=0))(frames, hole, indices)
    torch.testing.assert_close(result, expected.clamp(-1, 1)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tile", [(32, 48), (64, 64), (512, 512)])
def test_a_tile_that_covers_the_frame_changes_nothing(model: VideoModel, tile: tuple[int, int]) -> None:
    frames, hole, indices = clip(3, (8, 12))
    whole = Restorer(model, PLAIN)(frames, hole, indices)
    assert torch.equal(Restorer(model, replace(PLAIN, tile=tile))(frames, hole, indices), whole)


def test_a_window_that_covers_the_clip_changes_nothing(model: VideoModel) -> None:
    frames, hole, indices = clip(3, (4, 4))
    results = [Restorer(model, replace(PLAIN, window=w))(frames, hole, indices) for w in (3, 16)]
    assert torch.equal(*results)
    shorter = Restorer(model, replace(PLAIN, window=2, overlap=1))(frames, hole, indices)
    assert largest(shorter - results[0]) > 1e-5  # the model does look at its neighbours


def test_noise_belongs_to_the_frame_and_not_to_the_segment(model: VideoModel) -> None:
    frames, hole, indices = clip(5, (4, 4))
    restorer = Restorer(model, replace(PLAIN, window=1, overlap=0))
    whole = restorer(frames, hole, indices)
    torch.testing.assert_close(restorer(frames[2:4], hole[2:4], indices[2:4]), whole[2:4], atol=1e-6, rtol=0)
    torch.testing.assert_close(restorer(frames.flip(0), hole.flip(0), indices[::-1]), whole.flip(0), atol=1e-6, rtol=0)
    assert largest(restorer(frames[2:3], hole[2:3], [99]) - whole[2:3]) > 1e-4
    other_seed = Restorer(model, replace(restorer.settings, seed=4))(frames, hole, indices)
    assert largest(other_seed - whole) > 1e-4


def test_what_the_hole_hides_never_reaches_the_output(model: VideoModel) -> None:
    frames, hole, indices = clip(2, (8, 8))
    hidden = frames.clone()
    hidden[..., 2:4, :3] = 1.0  # the hole is rows 8 to 16, columns 0 to 10, of 32 x 32
    restorer = Restorer(model, replace(PLAIN, colour="wavelet"))
    assert torch.equal(restorer(frames, hole, indices), restorer(hidden, hole, indices))


@pytest.mark.parametrize(("grow", "width"), [(0, 0), (0, 4), (3, 6)])
def test_inpainting_keeps_every_pixel_beyond_the_feathered_hole(model: VideoModel, grow: int, width: int) -> None:
    frames, hole, indices = clip(2, (35, 41), scale=1)
    settings = replace(PLAIN, dilate=grow, feather=width, colour="wavelet")
    output = Restorer(model, settings)(frames, hole, indices)
    reached = dilate(hole[None], grow + width)[0].bool().expand_as(output)
    assert torch.equal(output[~reached], frames[~reached])
    assert (output - frames)[hole.bool().expand_as(output)].abs().mean() > 0.01
    nothing = torch.zeros_like(hole)
    assert torch.equal(Restorer(model, settings)(frames, nothing, indices), frames)


def test_a_full_hole_at_scale_one_is_answered(model: VideoModel) -> None:
    frames, hole, indices = clip(2, (16, 16), scale=1)
    restorer = Restorer(model, replace(PLAIN, colour="wavelet"))
    one, two = (restorer(x, torch.ones_like(hole), indices) for x in (frames, frames.flip(-1)))
    assert torch.equal(one, two)  # nothing is known, so nothing of the input may show
    assert one.std() > 0.001


def test_a_larger_hole_by_dilation_is_that_larger_hole(model: VideoModel) -> None:
    frames, hole, indices = clip(2, (8, 8))
    grown = Restorer(model, replace(PLAIN, dilate=0.75))(frames, hole, indices)  # low-res pixels, of four to a side
    assert torch.equal(grown, Restorer(model, PLAIN)(frames, dilate(hole[None], 3)[0], indices))


def test_guidance(text_model: VideoModel) -> None:
    frames, hole, indices = clip(2, (4, 6))
    prompt, negative = text_model.text(["ab c"]), text_model.text(["b b"])

    def run(scale: float, positive: Tensor, other: Tensor) -> Tensor:
        settings = replace(PLAIN, guidance=scale)
        return Restorer(text_model, settings, (positive, other))(frames, hole, indices)

    plain = run(1.0, prompt, negative)
    assert torch.equal(plain, run(1.0, prompt, prompt))  # at 1 the negative prompt is not looked at
    assert largest(plain - run(1.0, negative, negative)) > 1e-5
    torch.testing.assert_close(run(0.0, negative, prompt), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(run(5.0, prompt, prompt), plain, atol=1e-5, rtol=0)  # u + 5 (u - u)
    assert largest(run(5.0, prompt, negative) - plain) > 1e-5


def test_guidance_inside_tiles_and_windows(text_model: VideoModel) -> None:
    frames, hole, indices = clip(4, (8, 8))
    prompt, negative = text_model.text(["ab c"]), text_model.text([""])
    settings = replace(PLAIN, guidance=3.0)
    whole = Restorer(text_model, settings, (prompt, negative))(frames, hole, indices)
    covered = replace(settings, tile=(32, 32), window=4)
    assert torch.equal(Restorer(text_model, covered, (prompt, negative))(frames, hole, indices), whole)
    cut = replace(settings, tile=(16, 16), tile_overlap=8, window=2, overlap=1)
    parts = Restorer(text_model, cut, (prompt, negative))(frames, hole, indices)
    assert parts.shape == whole.shape
    assert largest(parts - whole) > 0


def test_progress_rises_to_one(model: VideoModel) -> None:
    frames, hole, indices = clip(2, (4, 4))
    shares: list[float] = []
    Restorer(model, replace(PLAIN, steps=3))(frames, hole, indices, shares.append)
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_the_model_is_left_as_it_was(model: VideoModel) -> None:
    frames, hole, indices = clip(2, (4, 4))
    inputs, before = (frames.clone(), hole.clone()), {k: v.clone() for k, v in model.state_dict().items()}
    restorer = Restorer(model, PLAIN)
    first = restorer(frames, hole, indices)
    assert torch.equal(restorer(frames, hole, indices), first)
    assert torch.equal(frames, inputs[0])
    assert torch.equal(hole, inputs[1])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not hasattr(model.scheduler, "num_inference_steps")  # set once a scheduler is given its steps


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu(model: VideoModel) -> None:
    frames, hole, indices = clip(3, (9, 7))
    settings = replace(PLAIN, window=2, overlap=1, tile=(32, 16), tile_overlap=8, colour="wavelet")
    cpu = Restorer(model, settings)(frames, hole, indices)
    gpu = Restorer(small_video_model().to("cuda"), settings)(frames, hole, indices)
    assert gpu.device.type == "cpu"
    torch.testing.assert_close(gpu, cpu, atol=1e-2, rtol=0)  # convolutions on the GPU may be in TF32


@pytest.mark.gpu
def test_the_gpu_looks_behind_a_hole_as_the_cpu_does(model: VideoModel) -> None:
    """A still hole in frames that are large enough for a search for motion."""
    frames, _, indices = clip(3, (24, 32))
    hole = torch.zeros(3, 1, 96, 128)
    hole[..., 40:56, 48:72] = 1
    settings = replace(PLAIN, propagate="auto")
    cpu = Restorer(model, settings)(frames, hole, indices)
    gpu = Restorer(small_video_model().to("cuda"), settings)(frames, hole, indices)
    torch.testing.assert_close(gpu, cpu, atol=1e-2, rtol=0)


def test_propagation_puts_in_what_other_frames_show(model: VideoModel) -> None:
    """A logo stands still over a moving camera; at scale 1 what is carried over is known, whatever the model says."""
    generator = torch.Generator().manual_seed(5)
    world = F.interpolate(torch.randn(1, 3, 24, 64, generator=generator), scale_factor=4, mode="bicubic")
    world = (world[0] * 0.4).clamp(-1, 1)  # 3 96 256
    truth = torch.stack([world[..., 8 * t : 8 * t + 128] for t in range(8)])  # t 3 96 128
    hole = torch.zeros(8, 1, 96, 128)
    hole[..., 40:52, 60:76] = 1
    painted = torch.where(hole.bool(), torch.ones_like(truth), truth)

    def error(propagate: str) -> float:
        settings = RestoreSettings(propagate=propagate, feather=0, colour="none")
        output = Restorer(model, settings)(painted, hole, list(range(8)))
        return float((output - truth)[hole.bool().expand_as(truth)].square().mean())

    assert error("on") < error("off") / 10
    assert error("auto") == error("on")
