"""The available encoders, and how each one takes quality and speed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm_video.core.errors import UserError

# SVT-AV1 numbers its presets; these roughly match the meaning of x264's names.
_SVT_PRESETS = {
    "ultrafast": "12", "superfast": "11", "veryfast": "10", "faster": "9", "fast": "8",
    "medium": "6", "slow": "5", "slower": "4", "veryslow": "3",
}  # fmt: skip


def repeatable_x264() -> dict[str, str]:
    """Return options that make x264 write the same bytes for the same pictures.

    Its AVX-512 code reads uninitialised memory: bytes differ from run to run, at widths such as 192. Its AVX2 code does
    not, and gives the same results as its plain SSE code.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return {}
    return {"x264-params": "asm=SSE2,SSSE3,SSE4.2,AVX,FMA3,BMI2,AVX2"}


@dataclass(frozen=True)
class Encoder:
    """A pixel format, the size multiples that it requires, and whether ``crf`` and ``preset`` apply.

    ``containers``: source suffixes that the output keeps; any other becomes ``.mkv``.
    ``smallest``: (height, width) of the smallest picture that it encodes safely.
    """

    name: str
    pix_fmt: str
    height_step: int
    width_step: int
    rate_factor: bool
    containers: str
    options: tuple[tuple[str, str], ...] = ()
    smallest: tuple[int, int] = (1, 1)

    def arguments(self, crf: int, preset: str) -> dict[str, str]:
        """Return FFmpeg's options for this encoder. Raises ``UserError`` for an invalid ``crf`` or ``preset``."""
        arguments = dict(self.options)
        if self.rate_factor:
            if preset not in _SVT_PRESETS:
                raise UserError(f"unknown preset {preset!r}; choose one of {', '.join(_SVT_PRESETS)}")
            largest = 51 if self.name == "libx265" else 63  # x264 clips values above 51
            if not 0 <= crf <= largest:
                raise UserError(f"--crf {crf} is outside 0 to {largest}; 16 is near transparent, 28 is small")
            named = _SVT_PRESETS[preset] if self.name == "libsvtav1" else preset
            arguments |= {"crf": str(crf), "preset": named}
        return arguments | (repeatable_x264() if self.name == "libx264" else {})


_LARGEST = 16384  # pixels per side; the maximum of x264 and SVT-AV1

ENCODERS = {
    encoder.name: encoder
    for encoder in (
        Encoder("libx264", "yuv420p", 2, 2, True, ".mp4 .m4v .mov .mkv"),
        # Of a picture no wider than a coding block (64) it reads and writes memory beside it: bytes differ from run to
        # run, or the process is aborted. Of one of 16 lines or fewer, bytes differ too, or it does not start.
        Encoder("libx265", "yuv420p", 2, 2, True, ".mp4 .mov .mkv", (("x265-params", "log-level=error"),), (32, 66)),
        Encoder("libsvtav1", "yuv420p", 2, 2, True, ".mp4 .mkv", (("svtav1-params", "chroma-sample-position=left"),)),
        # For editing: 10 bits, so that nothing is lost to banding before the final encode.
        Encoder("prores_ks", "yuv422p10le", 1, 2, False, ".mov .mkv", (("profile", "hq"), ("vendor", "apl0"))),
        # Lossless: at 4:4:4 and 10 bits an 8-bit RGB value survives the round trip through BT.709.
        Encoder("ffv1", "yuv444p10le", 1, 1, False, ".mkv", (("level", "3"), ("slicecrc", "1"))),
    )
}


def find_encoder(name: str) -> Encoder:
    """Return the encoder ``name``; raise ``UserError`` that lists the names if there is none."""
    if name not in ENCODERS:
        raise UserError(f"unknown codec {name!r}; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name]


def check_size(encoder: Encoder, size: tuple[int, int], source: tuple[int, int] | None = None) -> None:
    """Raise ``UserError``, naming options that help, if ``size`` is too large, too small or forbidden by subsampling.

    ``source``: the clip's size, if known. At that size pixels are kept, so another size is not suggested.
    """
    height, width = size
    if height < 1 or width < 1:
        raise UserError(f"output size {width}x{height} is empty; choose at least 2x2")
    if max(size) > _LARGEST:
        raise UserError(f"the output would be {width}x{height}, videos hold {_LARGEST}; choose a smaller --scale")
    if height % encoder.height_step or width % encoder.width_step:
        even = f"{width + width % 2}x{height + height % 2}"
        resize = f"choose {even} or about that by --height {height + height % 2} in the place of --scale, or "
        raise UserError(
            f"{encoder.name} ({encoder.pix_fmt}) needs even sizes, not {width}x{height}; "
            f"{'' if size == source else resize}give --codec ffv1 and an .mkv as --output, or a folder for PNG files"
        )
    if height < encoder.smallest[0] or width < encoder.smallest[1]:
        least = f"{encoder.smallest[1]}x{encoder.smallest[0]}"
        raise UserError(
            f"{encoder.name} takes no picture as small as {width}x{height}, only {least} and more; "
            "give --codec libx264 or ffv1"
        )
