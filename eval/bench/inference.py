"""Measure speed and memory of sampling against diffusers' own pipeline: ``python -m eval.bench.inference``.

Three variants take turns in one process; medians are printed. All have the layout of the SD x4-upscaler and the same
random weights, noise, prompt, guidance, noise level and steps:

- ``diffusers``: ``StableDiffusionUpscalePipeline``, called for every frame, as one upscales a clip with it.
- ``ours, no temporal layers``: :class:`~ldm_video.pipeline.restore.Restorer` on the clip, as ``infer.py`` runs a
  published checkpoint: frames folded into the batch, the prompt encoded once. The same work, plus the evidence.
- ``ours``: the same with temporal layers on every level.

The first two must give the same frames: their largest difference is printed, and one above rounding error is an error.
No variant includes reading or writing video. Peak memory is measured in a separate process for each. On a CPU, times
are CPU times of the process, so that other load on the machine hardly matters.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from eval.bench.peaks import peak_of
from eval.bench.train_throughput import SCALE, TOKENS, WIDTHS, make_autoencoder, make_scheduler, make_unet
from eval.bench.turns import alternate, gibibytes, markdown, ratio, spread
from ldm_video.core.device import find_device
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.diffusion.noise import frame_noise
from ldm_video.models.device import DTYPES, place
from ldm_video.models.open_model import FRAME_BY_FRAME
from ldm_video.models.stable_diffusion import Checkpoint, to_video
from ldm_video.models.temporal import TemporalConfig
from ldm_video.models.text import TextEncoder
from ldm_video.pipeline.restore import Restorer, RestoreSettings

PROMPT, NEGATIVE = "a harbour in the morning", "blurry"
SEED, NOISE_LEVEL, GUIDANCE = 5, 20, 9.0
TEXT_LAYERS = {"quarter": 6, "full": 23}
BASELINE, EQUAL, OURS = "diffusers", "ours, no temporal layers", "ours"
# Largest pixel difference in [-1, 1] that passes as rounding: other summation order, and the precision of the dtype.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.4}

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Setting:
    """What to measure: ``width`` of the networks, a clip of ``frames`` of ``size x size`` low-res pixels."""

    width: str
    frames: int
    size: int
    steps: int
    device: str
    dtype: str
    compile: bool

    @property
    def indices(self) -> range:
        """Indices of the frames in their clip; their noise is drawn from them."""
        return range(self.frames)

    def clip(self) -> Tensor:
        """Return low-res frames ``t 3 h w`` in [-1, 1]."""
        return torch.rand(self.frames, 3, self.size, self.size, generator=torch.Generator().manual_seed(0)) * 2 - 1


class GivenNoise(DDPMScheduler):
    """Low-res noise scheduler that adds the ``given`` noise instead of what the pipeline draws."""

    given: Tensor

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """Add the given noise to ``1 3 h w``."""
        return super().add_noise(original_samples, self.given.to(noise), timesteps)


def make_checkpoint(width: str) -> Checkpoint:
    """Build the parts of an SD x4-upscaler with random weights, identical at every call."""
    torch.manual_seed(0)
    with torch.device("meta"):
        config = _public_entries(make_unet(width, 4 + 3).config)
    betas = _public_entries(make_scheduler().config)
    return Checkpoint(
        unet=UNet2DConditionModel(**config | {"num_class_embeds": 1000}).eval(),
        autoencoder=make_autoencoder(width).eval(),
        text=make_text_encoder(width),
        scheduler=betas | {"_class_name": "DDIMScheduler", "clip_sample": False},
        lowres_scheduler=betas | {"_class_name": "DDPMScheduler"},
        noise_limit=350,
    )


def _public_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a diffusers config without its private entries, one of which lists keys that ``from_config`` ignores."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def make_text_encoder(width: str) -> TextEncoder:
    """Build OpenCLIP's text encoder as in Stable Diffusion 2, with single letters as vocabulary."""
    letters = list(string.ascii_lowercase)
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=TOKENS)
    hidden = WIDTHS[width][2]
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=TEXT_LAYERS[width],
        num_attention_heads=hidden // 64,
        hidden_act="gelu",
        max_position_embeddings=TOKENS,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    return TextEncoder(CLIPTextModel(config), tokenizer)


def diffusers_run(setting: Setting) -> Run:
    """Return a run that goes through diffusers' pipeline frame by frame."""
    diffusers_logging.set_verbosity_error()  # silences a warning about layers to be kept in float32 that names none
    parts = make_checkpoint(setting.width)
    lowres = GivenNoise.from_config(dict(parts.lowres_scheduler or {}))
    scheduler = DDIMScheduler.from_config(dict(parts.scheduler))
    pipeline = StableDiffusionUpscalePipeline(
        parts.autoencoder, parts.text.model, parts.text.tokenizer, parts.unet, lowres, scheduler
    )
    pipeline.to(setting.device, DTYPES[setting.dtype])
    pipeline.set_progress_bar_config(disable=True)
    if setting.compile:
        pipeline.unet.compile()
    frames, grid = setting.clip(), (setting.size, setting.size)

    def run() -> Tensor:
        made = []
        for index in setting.indices:
            lowres.given = frame_noise(~SEED, [index], (3, *grid), device=setting.device)  # as the restorer draws it
            output = pipeline(
                PROMPT,
                negative_prompt=NEGATIVE,
                image=frames[index : index + 1] / 2 + 0.5,
                num_inference_steps=setting.steps,
                guidance_scale=GUIDANCE,
                noise_level=NOISE_LEVEL,
                latents=frame_noise(SEED, [index], (4, *grid), device=setting.device, dtype=DTYPES[setting.dtype]),
                output_type="pt",
            )
            made.append(output.images.float().cpu() * 2 - 1)
        return torch.cat(made)  # t 3 H W

    return run


def our_run(setting: Setting, temporal: TemporalConfig) -> Run:
    """Return a run of the whole clip at once, laid out as in ``infer.py``."""
    parts = make_checkpoint(setting.width)
    model = to_video(parts, temporal).eval().requires_grad_(False)
    place(model, setting.device, setting.dtype)
    if setting.compile:
        model.denoiser.compile()
    settings = RestoreSettings(
        steps=setting.steps,
        guidance=GUIDANCE,
        seed=SEED,
        window=setting.frames,
        overlap=0,
        noise_level=NOISE_LEVEL,
        colour="none",  # diffusers has no colour correction
    )
    frames, side = setting.clip(), setting.size * SCALE
    hole = torch.zeros(setting.frames, 1, side, side)

    def run() -> Tensor:
        text = parts.text([PROMPT, NEGATIVE])  # encoded by the model's own text encoder
        return Restorer(model, settings, (text[:1], text[1:]))(frames, hole, setting.indices)

    return run


RUNS: dict[str, Callable[[Setting], Run]] = {
    BASELINE: diffusers_run,
    EQUAL: partial(our_run, temporal=FRAME_BY_FRAME),
    OURS: partial(our_run, temporal=TemporalConfig()),
}


def difference(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> float:
    """Return the largest pixel difference in [-1, 1]; ``UserError`` if it is more than rounding error or NaN."""
    largest = (ours - theirs).abs().max().item()
    if not largest <= TOLERANCE[dtype]:
        raise UserError(f"our frames are {largest:.2g} from those of diffusers; the timing of such runs says nothing")
    return largest


def _prepare(name: str, setting: Setting) -> Run:
    """Build a run inside its own process."""
    torch.set_grad_enabled(False)
    return RUNS[name](setting)


def _peak(name: str, setting: Setting) -> int:
    return peak_of(partial(_prepare, name, setting), setting.device, name, "take a smaller --width, --size or --frames")


def table(setting: Setting, times: Mapping[str, Sequence[float]], peaks: Mapping[str, int]) -> str:
    """Return a Markdown table: a row per run, with its speed relative to diffusers'.

    ``peaks``: peak memory in bytes, of the runs for which it was measured.
    """
    rows = []
    for name, values in times.items():
        each = [value / setting.frames for value in values]
        rows.append([name, *spread(each), f"{ratio(times[BASELINE], values):.2f}", gibibytes(peaks.get(name))])
    overhead = ratio(times[OURS], times[EQUAL]) - 1
    heads = ["sampling", "s / frame", "spread", "diffusers / time", "peak GiB"]
    return f"{markdown(heads, rows)}\n\nTemporal layers cost {overhead:.0%}. Ratios: median of rounds."


def parse_arguments(given: Sequence[str] | None = None) -> tuple[Setting, int, bool]:
    """Return the setting, the number of rounds, and whether memory is measured."""
    on_gpu = torch.cuda.is_available()
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", choices=sorted(WIDTHS), help="of the networks; default: full on a GPU, else quarter")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: bf16 on a GPU, else fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the UNet, for all")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="side of the low-res frames, which is the latents' too")
    parser.add_argument("--steps", type=int, default=2, help="of the sampler")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    arguments = parser.parse_args(given)
    if arguments.size % 8 or min(arguments.frames, arguments.rounds, arguments.steps, arguments.size) < 1:
        raise UserError("--size must be a multiple of 8; --frames, --steps and --rounds 1 or more")
    on_gpu = arguments.device.startswith("cuda")
    setting = Setting(
        width=arguments.width or ("full" if on_gpu else "quarter"),
        frames=arguments.frames,
        size=arguments.size,
        steps=arguments.steps,
        device=arguments.device,
        dtype=arguments.dtype or ("bf16" if on_gpu else "fp32"),
        compile=arguments.compile,
    )
    return setting, arguments.rounds, arguments.memory


def main() -> None:
    """Measure and print the table."""
    setting, rounds, memory = parse_arguments()
    find_device(setting.device)
    print(setting)
    peaks = {name: _peak(name, setting) for name in RUNS} if memory else {}
    runs = {name: make(setting) for name, make in RUNS.items()}
    outputs = {name: run() for name, run in runs.items()}  # also warms up
    largest = difference(outputs[EQUAL], outputs[BASELINE], DTYPES[setting.dtype])
    print(table(setting, alternate(runs, setting.device, rounds), peaks))
    print(f"Without temporal layers no pixel in [-1, 1] is further than {largest:.1g} from that of diffusers.")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_cli(main)
