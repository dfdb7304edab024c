"""Build the control of the shipped model: ``python -m eval.bench.control FOLDER``.

The control is a plain convolutional network of the same cost; it shows what the diffusion part contributes. It is the
shipped architecture with latents that are always zero, so that all work is left to a wider decoder that sees the
evidence. The shipped architecture with fresh weights is written next to it. Both are bundles, so the same stage trains
them for the same steps on the same clips with the same pixel losses, and they are measured like any model.

Writes ``FOLDER/control`` and ``FOLDER/diffusion``. Prints the parameters and floating-point operations of both, and the
commands that train them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm_video.config import build, load_config
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.core.evidence import build_evidence
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.video_model import VideoModel
from ldm_video.pipeline.arguments import SHIPPED

SMALL = Path(__file__).resolve().parents[2] / "configs" / "model" / "small.yaml"
WIDTHS = (96, 79, 32, 12)  # of the decoder's levels; they cost as much as the shipped denoiser and decoder together
TRAIN = (
    "python train.py --config configs/train/tiny/few_step.yaml data.root=VIDEOS name={name} init_from={bundle}"
    " task.step_shares=[1] task.decoder_share=0{extra}"
)
FROZEN = " task.spatial=null task.latent_weight=0"  # the control's denoiser is not trained: it outputs zero


def control_config(config: DictConfig) -> DictConfig:
    """Return the shipped model's ``config`` with a minimal denoiser and the decoder widened to :data:`WIDTHS`."""
    control = config.copy()
    OmegaConf.update(control, "codec.decoder_channels", list(WIDTHS))
    unet = {"block_out_channels": [16], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    control.denoiser.config.unet.update(**unet, norm_num_groups=4)
    control.denoiser.config.temporal.attention_levels = []
    return control


def build_control(config: DictConfig) -> VideoModel:
    """Build a fresh control: the denoiser's last layer is zero, hence v too and, in one step, the latents."""
    model: VideoModel = build(control_config(config))
    last = model.denoiser.unet.conv_out
    assert isinstance(last, nn.Conv2d)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return model


def build_diffusion(config: DictConfig) -> VideoModel:
    """Build the shipped architecture without its restorer; only the latents' scale, a data statistic, is not fresh."""
    model: VideoModel = build(config)
    scale = load_bundle(SHIPPED).codec.state_dict()["latent_std"]
    model.codec.load_state_dict({"latent_std": scale}, strict=False)
    return model


@torch.no_grad()
def operations(model: VideoModel, side: int = 128, frames: int = 2) -> float:
    """Return the floating-point operations of one step and of decoding, per output pixel and frame."""
    scale, factor = round(model.sampling.scale), model.codec.factor
    lowres = torch.zeros(1, frames, 3, side // scale, side // scale)
    evidence = build_evidence(lowres, torch.zeros(1, frames, 1, side, side))
    noise = torch.zeros(1, frames, model.codec.latent_channels, side // factor, side // factor)
    with FlopCounterMode(display=False) as counter:
        model.codec.decode(model.predict(noise, torch.tensor(0), evidence), evidence)
    return counter.get_total_flops() / (frames * side**2)


def main() -> None:
    """Write both bundles and print their cost."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder that is written")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        raise UserError(f"{arguments.folder} exists; remove it or give another folder")
    config = load_config(SMALL)
    config.sampling.steps = 1  # the shipped model skips its sampling step; here it is what is compared
    for name, make, extra in (("control", build_control, FROZEN), ("diffusion", build_diffusion, "")):
        torch.manual_seed(0)
        model = make(config)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name}: {parameters / 1e6:.2f}M parameters, {operations(model) / 1e3:.0f} kFLOP for an output pixel")
        bundle = arguments.folder / name
        save_bundle(model, bundle)
        print(TRAIN.format(name=name, bundle=bundle, extra=extra))


if __name__ == "__main__":
    run_cli(main)
