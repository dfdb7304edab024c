"""Which YUV a file holds, and by which standard.

Standards: ITU-R BT.601-7 (SD), ITU-R BT.709-6 (HD), ITU-R BT.2020-2, SMPTE ST 240. The conversions themselves run in
swscale (see ``convert.py``); the tests check them against the standards' formulas. Only matrix and range are converted:
R'G'B' stays in the source's primaries, which differ little between SD and HD (BT.601-7 table 2, BT.709-6 table 1) and
which most SD files tag wrongly or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
# Untagged video is BT.601 up to 576 lines, BT.709 above, and at a width of 1280 or more: a wide film in HD may have 544
# lines.
SD_MAX_HEIGHT, HD_MIN_WIDTH = 576, 1280
# AVColorSpace (ITU-T H.273 table 4) -> our names; 2 is "unspecified".
H273_MATRIX: dict[int, Matrix] = {
    0: "rgb", 1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020",
}  # fmt: skip
# H.273 tables 2 and 3: transfer 16 = PQ, 18 = HLG.
HDR_TRANSFERS: dict[int, str] = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class Colour:
    """Matrix and range of a Y'CbCr signal; ``assumed`` if the matrix is untagged and follows from the size."""

    matrix: Matrix
    range: Range
    assumed: bool = False

    def is_like(self, other: Colour) -> bool:
        """Return whether the signals mean the same, tagged or assumed."""
        return (self.matrix, self.range) == (other.matrix, other.range)

    def __str__(self) -> str:
        return f"{self.matrix} {self.range}" + (" (assumed)" if self.assumed else "")
