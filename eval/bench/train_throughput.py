"""Measure speed and memory of a training step against diffusers: ``python -m eval.bench.train_throughput``.

Three variants take turns in one process; medians are printed:

- ``diffusers``: the loop of diffusers' own training scripts around the per-frame UNet of the SD x4-upscaler, clips
  folded to frames: encode, noise, predict, mean squared error, clip the gradient, AdamW.
- ``ours, no temporal layers``: :class:`~ldm_video.training.denoiser_task.DenoiserTask` with the same UNet, text and
  autoencoder; the same work, plus the evidence.
- ``ours``: the same with temporal layers on every level.

No variant includes reading data or Lightning's loop (a few milliseconds). Peak memory is measured in a separate process
for each. On a CPU, times are CPU times of the process, so that other load on the machine hardly matters.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eval.bench.peaks import peak_of
from eval.bench.turns import Turn, alternate, gibibytes, markdown, ratio, spread
from ldm_video.core.device import find_device
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.core.evidence import EvidenceLayout
from ldm_video.core.tensors import fold_time
from ldm_video.diffusion.objective import Objective
from ldm_video.models.codec import ImageCodec
from ldm_video.models.inflate import inflate
from ldm_video.models.stable_diffusion import UPSCALER_SCALING
from ldm_video.models.temporal import TemporalConfig
from ldm_video.models.video_model import VideoModel
from ldm_video.training.denoiser_task import DenoiserTask
from ldm_video.training.estimate import Plan, synthetic_batch

SCALE = 4
TOKENS = 77
# Widths of the UNet's first level, of the autoencoder's first level and of the text embedding.
WIDTHS = {"quarter": (64, 32, 256), "full": (256, 128, 1024)}
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense FLOP/s of the SXM cards, from their data sheets
BASELINE, EQUAL, OURS = "diffusers", "ours, no temporal layers", "ours"

Step = Callable[[int], Tensor]


@dataclass(frozen=True)
class Setting:
    """What to measure: ``width`` of the networks, clips of ``batch x frames`` of ``size x size`` pixels."""

    width: str
    batch: int
    frames: int
    size: int
    device: str
    bf16: bool
    compile: bool

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16) if self.bf16 else nullcontext()


def make_unet(width: str, in_channels: int) -> UNet2DConditionModel:
    """Build the UNet of the SD x4-upscaler with fresh weights and without its noise-level embedding."""
    base, _, text = WIDTHS[width]
    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        block_out_channels=(base, 2 * base, 2 * base, 4 * base),
        layers_per_block=2,
        attention_head_dim=8,
        only_cross_attention=(True, True, True, False),
        cross_attention_dim=text,
        use_linear_projection=True,
    )


def make_autoencoder(width: str) -> AutoencoderKL:
    """Build a KL-f4 autoencoder with fresh weights."""
    base = WIDTHS[width][1]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(base, 2 * base, 4 * base),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=UPSCALER_SCALING,
    )


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction")


class FixedText(nn.Module):
    """One embedding for every caption; text encoding is not part of the comparison."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(0)))

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Return the embedding ``b n d`` of ``b`` captions."""
        embedding: Any = self.embedding
        return embedding.expand(len(captions), -1, -1)


def diffusers_step(setting: Setting) -> Step:
    """Return a step of diffusers' ``train_text_to_image.py``, on frames."""
    unet = make_unet(setting.width, 4 + 3).to(setting.device).train()
    autoencoder = make_autoencoder(setting.width).to(setting.device).requires_grad_(False)
    text = FixedText(WIDTHS[setting.width][2]).to(setting.device)
    scheduler = make_scheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)
    batch = make_batch(setting)
    if setting.compile:
        unet.compile()

    def step(_: int) -> Tensor:
        high, low = fold_time(batch["hr"]), fold_time(batch["lr"])  # (b t) 3 H W, (b t) 3 H/4 W/4
        with setting.autocast():
            with torch.no_grad():
                latents = autoencoder.encode(high).latent_dist.sample() * autoencoder.config.scaling_factor
            noise = torch.randn_like(latents)
            t = torch.randint(1000, (len(latents),), device=latents.device)
            noisy = scheduler.add_noise(latents, noise, t)
            output = unet(torch.cat([noisy, low], dim=1), t, text([""] * len(latents))).sample
            loss = F.mse_loss(output.float(), scheduler.get_velocity(latents, noise, t).float())
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def our_step(setting: Setting, temporal: TemporalConfig) -> Step:
    """Return a step of the denoiser stage, set up as in ``train.py``."""
    layout = EvidenceLayout("pixels", factor=SCALE, with_known=False)
    model = VideoModel(
        denoiser=inflate(make_unet(setting.width, 4 + layout.channels), temporal),
        codec=ImageCodec(make_autoencoder(setting.width)),
        scheduler=make_scheduler(),
        layout=layout,
        text=FixedText(WIDTHS[setting.width][2]),  # type: ignore[arg-type]
    ).to(memory_format=torch.channels_last)
    model.to(setting.device)
    stage = DenoiserTask(model, Objective, partial(torch.optim.AdamW, lr=1e-5))
    optimizer = stage.make_optimizer([{"params": group} for group in stage.parameter_groups().values()])
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    batch = make_batch(setting)
    if setting.compile:
        model.denoiser.compile()

    def step(index: int) -> Tensor:
        with setting.autocast(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*self.log.*")  # there is no trainer to log to
            loss = stage.training_step(batch, index)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def make_batch(setting: Setting) -> dict[str, Any]:
    plan = Plan(setting.batch, setting.frames, (setting.size, setting.size), SCALE, steps=1)
    return synthetic_batch(plan, torch.device(setting.device))


STEPS: dict[str, Callable[[Setting], Step]] = {
    BASELINE: diffusers_step,
    EQUAL: partial(our_step, temporal=TemporalConfig(attention_levels=(), conv_levels=())),
    OURS: partial(our_step, temporal=TemporalConfig()),
}


def as_turn(step: Step) -> Turn:
    """Return a turn that runs one step, the next at each call; ``UserError`` if the loss is not finite."""
    numbers = count()

    def turn() -> None:
        if not torch.isfinite(step(next(numbers))):
            raise UserError("the loss is not a number; the timing of such steps says nothing")

    return turn


def flops_of(name: str, setting: Setting) -> int:
    """Return the FLOPs of a step's matrix products, convolutions and attention, backward pass included."""
    step = STEPS[name](setting)
    with FlopCounterMode(display=False) as counter:
        step(0)
    return counter.get_total_flops()


def _prepare(name: str, setting: Setting) -> Callable[[], None]:
    """Build a variant's training steps inside its own process."""
    step = STEPS[name](setting)

    def twice() -> None:  # the optimizer's state is allocated by the first step
        step(0)
        step(1)

    return twice


def _peak(name: str, setting: Setting) -> int:
    return peak_of(partial(_prepare, name, setting), setting.device, name, "take a smaller --width, --size or --batch")


def bf16_peak(device: str) -> float | None:
    """Return the peak bf16 FLOP/s from the GPU's data sheet, None if it is not listed."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return next((peak for card, peak in BF16_PEAK.items() if card in name), None)


def table(setting: Setting, times: Mapping[str, Sequence[float]], memory: bool) -> str:
    """Return a Markdown table: a row per variant, with its time relative to the baseline's."""
    median = {name: statistics.median(values) for name, values in times.items()}
    peak = bf16_peak(setting.device)
    heads = ["step", "s / step", "spread", "clips / s", "time / diffusers", "TFLOP / step", "peak GiB"]
    rows = []
    for name, values in times.items():
        flops = flops_of(name, setting)
        rows.append([
            name,
            *spread(values),
            f"{setting.batch / median[name]:.2f}",
            f"{ratio(values, times[BASELINE]):.2f}",
            f"{flops / 1e12:.3f}",
            gibibytes(_peak(name, setting) if memory else None),
            f"{flops / median[name] / peak:.0%}" if peak and setting.bf16 else "-",
        ])  # fmt: skip
    overhead = ratio(times[OURS], times[EQUAL]) - 1
    body = markdown([*heads, "share of bf16 peak"], rows)
    return f"{body}\n\nTemporal layers cost {overhead:.0%} of a step. Ratios: median of rounds."


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", choices=sorted(WIDTHS), default="quarter", help="of the SD x4-upscaler's UNet")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("32", "bf16"), default=None, help="default: bf16 on a GPU, else 32")
    parser.add_argument("--compile", action="store_true", help="torch.compile, for all")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="side of the high-res frames; latents have a quarter")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    arguments = parser.parse_args()
    find_device(arguments.device)
    if arguments.size % 32 or min(arguments.batch, arguments.frames, arguments.rounds, arguments.size) < 1:
        raise UserError("--size must be a multiple of 32; --batch, --frames and --rounds 1 or more")
    setting = Setting(
        width=arguments.width,
        batch=arguments.batch,
        frames=arguments.frames,
        size=arguments.size,
        device=arguments.device,
        bf16=(arguments.precision or ("bf16" if arguments.device.startswith("cuda") else "32")) == "bf16",
        compile=arguments.compile,
    )
    print(setting)
    turns = {name: as_turn(make(setting)) for name, make in STEPS.items()}
    print(table(setting, alternate(turns, setting.device, arguments.rounds, warmup=2), arguments.memory))


if __name__ == "__main__":
    run_cli(main)
