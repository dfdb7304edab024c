"""Which YUV a file holds, and the maths between R'G'B' and Y'CbCr.

Standards: ITU-R BT.601-7 (SD), ITU-R BT.709-6 (HD), ITU-R BT.2020-2, SMPTE ST 240. The conversions themselves run in
swscale (see ``convert.py``); the tests hold its answers against the pure functions below. Only matrix and range are
converted: R'G'B' stays in the source's primaries, which differ little between SD and HD (BT.601-7 table 2, BT.709-6
table 1) and which most SD files tag wrongly or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Matrix = Literal["bt601", "bt709", "bt2020", "smpte240m", "fcc", "rgb"]
Range = Literal["limited", "full"]

# Luma weights (Kr, Kb): BT.601-7 2.5.1, BT.709-6 3.2, BT.2020-2 table 4, SMPTE ST 240 and FCC 73.682 (a)(20).
LUMA_WEIGHTS: dict[str, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
}
# Untagged is BT.601 up to 576 lines, BT.709 above, and where they are 1280 wide: of a film in HD there may be 544.
SD_MAX_HEIGHT, HD_MIN_WIDTH = 576, 1280
# AVColorSpace (ITU-T H.273 table 4) -> our names; 2 is "unspecified".
H273_MATRIX: dict[int, Matrix] = {
    0: "rgb", 1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020",
}  # fmt: skip
# H.273 tables 2 and 3: transfer 16 = PQ, 18 = HLG.
HDR_TRANSFERS: dict[int, str] = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class Colour:
    """Matrix and range of a Y'CbCr signal; ``assumed`` when the file says nothing and the size decided."""

    matrix: Matrix
    range: Range
    assumed: bool = False

    def is_like(self, other: Colour) -> bool:
        """Whether the signals mean the same, said or assumed."""
        return (self.matrix, self.range) == (other.matrix, other.range)

    def __str__(self) -> str:
        return f"{self.matrix} {self.range}" + (" (assumed)" if self.assumed else "")


def rgb_to_yuv(rgb: np.ndarray, matrix: str, range_: str, bits: int = 8) -> np.ndarray:
    """R'G'B' in [0, 1] (... 3) -> Y'CbCr code values (float, not rounded) (... 3).

    BT.709-6 3.2-3.4 and BT.601-7 2.5: E'Y = Kr R + (1-Kr-Kb) G + Kb B, E'Cb = (B - Y) / (2 (1-Kb)),
    E'Cr = (R - Y) / (2 (1-Kr)); limited: 219/224 steps from 16/128 times 2^(bits-8); full: 2^bits - 1 steps.
    """
    kr, kb = LUMA_WEIGHTS[matrix]
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    y0, y_span, c0, c_span = _code_levels(range_, bits)
    return np.stack([y0 + y_span * y, c0 + c_span * cb, c0 + c_span * cr], axis=-1)


def yuv_to_rgb(yuv: np.ndarray, matrix: str, range_: str, bits: int = 8) -> np.ndarray:
    """The inverse of :func:`rgb_to_yuv`: code values (... 3) -> R'G'B' (... 3), not clipped to [0, 1]."""
    kr, kb = LUMA_WEIGHTS[matrix]
    y0, y_span, c0, c_span = _code_levels(range_, bits)
    y, cb, cr = (yuv[..., 0] - y0) / y_span, (yuv[..., 1] - c0) / c_span, (yuv[..., 2] - c0) / c_span
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], axis=-1)


def _code_levels(range_: str, bits: int) -> tuple[float, float, float, float]:
    """(black level, luma span, chroma zero, chroma span) in code values."""
    unit = 2 ** (bits - 8)
    if range_ == "limited":
        return 16 * unit, 219 * unit, 128 * unit, 224 * unit
    return 0, 2**bits - 1, 128 * unit, 2**bits - 1
