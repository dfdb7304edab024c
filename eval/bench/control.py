"""The control of the shipped model: ``python -m eval.bench.control BUNDLE``.

A plain convolutional network of the same cost, to learn what the diffusion part earns: the shipped architecture with
latents that are always zero, so that everything is left to a wider decoder that sees the evidence. It is a bundle, so
it is trained by the same stage on the same clips with the same pixel losses, and measured like any model.

Printed: parameters and floating-point operations of both, and the command that trains the control.
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
from ldm_video.models.bundle import save_bundle
from ldm_video.models.video_model import VideoModel

SMALL = Path(__file__).resolve().parents[2] / "configs" / "model" / "small.yaml"
WIDTHS = (96, 79, 24, 12)  # of the decoder's grids: the cost of denoiser and decoder together
TRAIN = (
    "python train.py --config configs/train/tiny/few_step.yaml data.root=FOLDER name=control init_from={bundle}"
    " task.spatial=null task.latent_weight=0 task.step_shares=[1]"
)


def control_config(config: DictConfig) -> DictConfig:
    """``config`` of the shipped model with the least of denoisers and the decoder widened to :data:`WIDTHS`."""
    control = config.copy()
    OmegaConf.update(control, "codec.decoder_channels", list(WIDTHS))
    unet = {"block_out_channels": [16], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    control.denoiser.config.unet.update(**unet, norm_num_groups=4)
    control.denoiser.config.temporal.attention_levels = []
    return control


def build_control(config: DictConfig) -> VideoModel:
    """A fresh control: the denoiser's last layer is zero, and with it v and, in one step, the latents."""
    model: VideoModel = build(control_config(config))
    last = model.denoiser.unet.conv_out
    assert isinstance(last, nn.Conv2d)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return model


@torch.no_grad()
def operations(model: VideoModel, side: int = 128, frames: int = 2) -> float:
    """Floating-point operations of one step and of decoding, for one output pixel of one frame."""
    scale, factor = model.sampling.scale, model.codec.factor
    lowres = torch.zeros(1, frames, 3, side // scale, side // scale)
    evidence = build_evidence(lowres, torch.zeros(1, frames, 1, side, side))
    noise = torch.zeros(1, frames, model.codec.latent_channels, side // factor, side // factor)
    with FlopCounterMode(display=False) as counter:
        model.codec.decode(model.predict(noise, torch.tensor(0), evidence), evidence)
    return counter.get_total_flops() / (frames * side**2)


def main() -> None:
    """Write the control and print what both cost."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path, help="folder that is written")
    arguments = parser.parse_args()
    if arguments.bundle.exists():
        raise UserError(f"{arguments.bundle} exists; remove it or give another folder")
    torch.manual_seed(0)
    config = load_config(SMALL)
    models = {"shipped": build(config), "control": build_control(config)}
    for name, model in models.items():
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{name}: {parameters / 1e6:.2f}M parameters, {operations(model) / 1e3:.0f} kFLOP for an output pixel")
    save_bundle(models["control"], arguments.bundle)
    print(TRAIN.format(bundle=arguments.bundle))


if __name__ == "__main__":
    run_cli(main)
