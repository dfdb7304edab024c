"""The control of the shipped model: ``python -m eval.bench.control FOLDER``.

A plain convolutional network of the same cost, to learn what the diffusion part earns: the shipped architecture with
latents that are always zero, so that everything is left to a wider decoder that sees the evidence. Beside it, the
shipped architecture with fresh weights. Both are bundles, so the same stage trains them for the same steps on the same
clips with the same pixel losses, and they are measured like any model.

Written: ``FOLDER/control`` and ``FOLDER/diffusion``. Printed: parameters and floating-point operations of both, and the
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
WIDTHS = (96, 79, 32, 12)  # of the decoder's grids: the cost of denoiser and decoder together
TRAIN = (
    "python train.py --config configs/train/tiny/few_step.yaml data.root=VIDEOS name={name} init_from={bundle}"
    " task.step_shares=[1] task.decoder_share=0{extra}"
)
FROZEN = " task.spatial=null task.latent_weight=0"  # the control's denoiser stays what it is: none


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


def build_diffusion(config: DictConfig) -> VideoModel:
    """The shipped architecture less its restorer, fresh but for the scale of the latents, a fact of the clips."""
    model: VideoModel = build(config)
    scale = load_bundle(SHIPPED).codec.state_dict()["latent_std"]
    model.codec.load_state_dict({"latent_std": scale}, strict=False)
    return model


@torch.no_grad()
def operations(model: VideoModel, side: int = 128, frames: int = 2) -> float:
    """Floating-point operations of one step and of decoding, for one output pixel of one frame."""
    scale, factor = round(model.sampling.scale), model.codec.factor
    lowres = torch.zeros(1, frames, 3, side // scale, side // scale)
    evidence = build_evidence(lowres, torch.zeros(1, frames, 1, side, side))
    noise = torch.zeros(1, frames, model.codec.latent_channels, side // factor, side // factor)
    with FlopCounterMode(display=False) as counter:
        model.codec.decode(model.predict(noise, torch.tensor(0), evidence), evidence)
    return counter.get_total_flops() / (frames * side**2)


def main() -> None:
    """Write both and print what they cost."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder that is written")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        raise UserError(f"{arguments.folder} exists; remove it or give another folder")
    config = load_config(SMALL)
    config.sampling.steps = 1  # what is compared is a model that takes its step, which the shipped one leaves out
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
