"""Convert models: ``python -m ldm_video.convert to-bundle | to-diffusers | add-motion | add-restorer | ...``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ldm_video.config import build, load_config
from ldm_video.core.checkpoints import INDEX
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.core.files import atomic_path
from ldm_video.models.alike import difference
from ldm_video.models.bundle import save_bundle
from ldm_video.models.codec import VideoCodec
from ldm_video.models.device import DTYPES
from ldm_video.models.export import to_pipeline
from ldm_video.models.grow import grow
from ldm_video.models.motion_adapter import load_motion, read_motion_adapter
from ldm_video.models.open_model import FRAME_BY_FRAME, find_model, is_bundle, open_model
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.models.quiet import quiet
from ldm_video.models.real_esrgan import load_published, published_sizes
from ldm_video.models.temporal import TemporalConfig
from ldm_video.models.text import save_text_model
from ldm_video.models.video_model import VideoModel

_CHECKPOINT_OPTIONS = ("head_dim", "heads", "variant")  # options of to-bundle that have no effect on a bundle


def main() -> None:
    """Read the command line, check the destination, convert."""
    arguments = parse_arguments()
    check_place(arguments.result, arguments.overwrite)
    try:
        lines = arguments.convert(arguments)
    except SafetensorError as error:  # while writing: it wraps the operating system's error and drops its number
        raise UserError(
            f"cannot write {arguments.result} ({error}); free some space or choose another folder"
        ) from error
    print("\n".join(lines))
    print(f"wrote {arguments.result}")


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m ldm_video.convert", description="Convert models.")
    commands = parser.add_subparsers(dest="command", required=True)
    bundle = commands.add_parser("to-bundle", help="Stable Diffusion -> a bundle of ldm-video")
    bundle.add_argument("model", help="Stable Diffusion folder or file, hub name[@revision], or a bundle")
    bundle.add_argument("--variant", help="of a folder's weights, such as fp16")
    bundle.add_argument(
        "--head-dim",
        type=int,
        help=f"width of a head in new temporal layers (default {TemporalConfig.head_dim}); 0 for no temporal layers",
    )
    bundle.add_argument("--heads", type=int, help="heads of every new temporal layer, instead; AnimateDiff has 8")
    diffusers = commands.add_parser("to-diffusers", help="a bundle that began as Stable Diffusion -> diffusers folder")
    diffusers.add_argument("model", help="the bundle")
    motion = commands.add_parser("add-motion", help="a bundle + an AnimateDiff motion adapter -> a bundle")
    motion.add_argument("model", help="the bundle, with new temporal layers")
    motion.add_argument("adapter", type=Path, help="folder of a diffusers MotionAdapter, or .safetensors file")
    paired = commands.add_parser(
        "add-restorer", help="a small model + Real-ESRGAN x4plus -> a bundle that averages both"
    )
    paired.add_argument("model", help="the bundle")
    paired.add_argument("real_esrgan", type=Path, metavar="FILES", help="ncnn's files of x4plus, without their endings")
    paired.add_argument(
        "--share", type=parse_share, default=0.45, help="of the restorer's pictures (default %(default)s)"
    )
    paired.add_argument("--every", type=parse_frames, default=16, metavar="N",
        help="frames of which it draws one, to be carried along to the others (default %(default)s)")  # fmt: skip
    alone = commands.add_parser("remove-restorer", help="the model that ships -> a bundle with its own decoder alone")
    alone.add_argument("model", help="the bundle")
    new = commands.add_parser("fresh", help="a model's configuration -> a bundle with new weights, to be trained")
    new.add_argument("config", type=Path, help="a YAML file of configs/model")
    new.add_argument("--seed", type=parse_seed, default=0, help="of the new weights (default %(default)s)")
    large = commands.add_parser("grow", help="a bundle + a larger decoder -> a bundle, to be trained on")
    large.add_argument("model", help="the bundle")
    large.add_argument("config", type=Path, help="a YAML file of configs/model, of which the codec is taken")
    mixed = commands.add_parser("mix", help="two bundles of one model, trained from the same start -> their mean")
    mixed.add_argument("model", help="a bundle; scheduler and defaults of sampling are its own")
    mixed.add_argument("other", help="another one")
    mixed.add_argument("--share", type=parse_share, default=0.5, help="of the other's weights (default %(default)s)")
    conversions = (
        (bundle, to_bundle),
        (diffusers, to_diffusers),
        (motion, add_motion),
        (paired, add_restorer),
        (alone, remove_restorer),
        (new, fresh),
        (large, enlarge_decoder),
        (mixed, mix),
    )
    for command, convert in conversions:
        command.set_defaults(convert=convert)
        command.add_argument("result", type=Path, help="folder to write")
        command.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    for command in (bundle, motion, paired, alone, new, large, mixed):
        command.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the stored weights")
    return parser.parse_args(words)


def parse_share(word: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{word} is not a fraction; give a number from 0 to 1")
    return value


def parse_frames(word: str) -> int:
    """Parse an integer of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a number of frames; give 1 or more")
    return int(word)


def parse_seed(word: str) -> int:
    """Parse a non-negative integer that torch accepts as a seed."""
    if not word.isdecimal() or int(word) >= 2**63:
        raise argparse.ArgumentTypeError(f"{word} is not a seed; give a whole number from 0 to 2^63 - 1")
    return int(word)


def check_place(folder: Path, overwrite: bool) -> None:
    """Raise ``UserError`` unless ``folder`` is free, or holds a model and may be replaced."""
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"{folder} exists; pass --overwrite to replace it, or choose another folder")
    if not (folder / INDEX).is_file():  # --overwrite must not delete a folder of something else
        raise UserError(f"{folder} exists and is not a model, so it is not replaced; choose another folder")


def to_bundle(arguments: argparse.Namespace) -> list[str]:
    """Write a checkpoint as a bundle; return lines that describe it."""
    if arguments.head_dim == 0 and arguments.heads is not None:
        raise UserError("--head-dim 0 leaves temporal layers out, --heads is of those; give one of them")
    new = TemporalConfig(head_dim=arguments.head_dim or TemporalConfig.head_dim, heads=arguments.heads)
    temporal = FRAME_BY_FRAME if arguments.head_dim == 0 else new
    files = find_model(arguments.model, variant=arguments.variant)
    given = [f"--{name.replace('_', '-')}" for name in _CHECKPOINT_OPTIONS if getattr(arguments, name) is not None]
    if given and is_bundle(files):
        raise UserError(
            f"{arguments.model} is a bundle, on which {given[0]} has no effect; give the checkpoint that it began as"
        )
    model = open_model(files, variant=arguments.variant, temporal=temporal)
    save(model, arguments.result, arguments.dtype)
    return [
        f"{sum(p.numel() for p in model.parameters()):,} parameters in {arguments.dtype}, of which "
        f"{sum(p.numel() for p in model.denoiser.temporal_parameters()):,} are temporal layers"
    ]


def to_diffusers(arguments: argparse.Namespace) -> list[str]:
    """Write a bundle's spatial part as a diffusers pipeline; return what is left out."""
    pipeline, left_out = to_pipeline(open_model(arguments.model, temporal=FRAME_BY_FRAME))
    with atomic_path(arguments.result) as temporary:
        with quiet("diffusers"), quiet("transformers"):
            pipeline.save_pretrained(temporary)
        save_text_model(pipeline.text_encoder, temporary / "text_encoder")
    return [f"a {type(pipeline).__name__} of diffusers", *(f"left out: {line}" for line in left_out)]


def add_motion(arguments: argparse.Namespace) -> list[str]:
    """Write a bundle with temporal attention initialised from AnimateDiff's; return what was and was not loaded."""
    adapter = read_motion_adapter(arguments.adapter)
    model = open_model(arguments.model)
    report = load_motion(model.denoiser, adapter)
    save(model, arguments.result, arguments.dtype)
    return report.lines()


def add_restorer(arguments: argparse.Namespace) -> list[str]:
    """Write a model with a published restorer beside its decoder; return the sizes of both."""
    model = open_model(arguments.model)
    own = model.codec
    if not isinstance(own, VideoCodec):
        raise UserError(f"a restorer goes beside a VideoCodec; {arguments.model} has another codec")
    channels, blocks = published_sizes(arguments.real_esrgan)
    codec = PairedCodec(
        **own.config,
        restorer_channels=channels,
        restorer_blocks=blocks,
        share=arguments.share,
        every=arguments.every,
    )
    codec.decoder.load_state_dict(own.decoder.state_dict())
    codec.latent_std.copy_(own.latent_std)
    load_published(codec.restorer, arguments.real_esrgan)
    model.codec = codec
    save(model, arguments.result, arguments.dtype)
    parts = [sum(p.numel() for p in part.parameters()) for part in (codec.decoder, codec.restorer)]
    drawn = f"{arguments.share:g} of the picture, drawn for one of {arguments.every} frames"
    return [f"a decoder of {parts[0]:,} parameters and a restorer of {parts[1]:,}: {drawn}"]


def remove_restorer(arguments: argparse.Namespace) -> list[str]:
    """Write a model with its own decoder alone, without the restorer beside it: for training, or for speed."""
    model = open_model(arguments.model)
    paired = model.codec
    if not isinstance(paired, PairedCodec):
        raise UserError(f"{arguments.model} has no restorer to be removed")
    model.codec = paired.alone()
    save(model, arguments.result, arguments.dtype)
    return [f"a decoder of {sum(p.numel() for p in model.codec.parameters()):,} parameters"]


def fresh(arguments: argparse.Namespace) -> list[str]:
    """Write a configuration's model with new weights."""
    torch.manual_seed(arguments.seed)
    model = build(load_config(arguments.config))
    save(model, arguments.result, arguments.dtype)
    return [f"{sum(p.numel() for p in model.parameters()):,} new parameters"]


def enlarge_decoder(arguments: argparse.Namespace) -> list[str]:
    """Write a model with a larger decoder that gives the same output until it is trained."""
    torch.manual_seed(0)
    model = open_model(arguments.model)
    codec = build(load_config(arguments.config).codec)
    if not isinstance(model.codec, VideoCodec) or not isinstance(codec, VideoCodec):
        raise UserError(f"only a VideoCodec can grow; {arguments.model} or {arguments.config} has another codec")
    before = sum(p.numel() for p in model.codec.parameters())
    grow(codec, model.codec)
    model.codec = codec
    save(model, arguments.result, arguments.dtype)
    return [f"a decoder of {sum(p.numel() for p in codec.parameters()):,} parameters, of which {before:,} are trained"]


def mix(arguments: argparse.Namespace) -> list[str]:
    """Write the weighted mean of two models' weights (arXiv:2109.01903)."""
    model, other = open_model(arguments.model), open_model(arguments.other)
    if unlike := difference(model, other):
        raise UserError(
            f"{arguments.model} and {arguments.other} are different models: {unlike} differs; "
            "mix two that were trained from the same start"
        )
    weights, others = model.state_dict(), other.state_dict()
    if misfits := _shapes(weights) ^ _shapes(others):
        name, _ = min(misfits)
        raise UserError(f"{arguments.model} and {arguments.other} are different models: {name} differs in shape")
    for name, value in weights.items():
        if value.is_floating_point():
            value.lerp_(others[name].to(value), arguments.share)
    save(model, arguments.result, arguments.dtype)
    return [f"{1 - arguments.share:g} of {arguments.model} and {arguments.share:g} of {arguments.other}"]


def _shapes(weights: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, value.shape) for name, value in weights.items()}


def save(model: VideoModel, folder: Path, dtype: str) -> None:
    """Write a bundle. Raises ``UserError`` if ``dtype`` cannot hold one of its weights."""
    if dtype != "fp32":
        for name, parameter in model.named_parameters():
            if not parameter.to(DTYPES[dtype]).isfinite().all():
                raise UserError(f"weight {name} is too large for {dtype}; use --dtype bf16 or fp32")
    save_bundle(model, folder, DTYPES[dtype])


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_cli(main)
