"""Prompts for parts of a clip: lines ``frame: prompt`` in a file, cross-faded where one follows another.

A frame's embedding depends only on its index in the clip, not on how the clip is split into segments, windows or
shares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldm_video.core.errors import UserError

_LINE = re.compile(r"([0-9]{1,12})\s*:(.*)")
_SHOWN = 40  # characters of a bad line in the error message
_HINT = "give a text file with lines such as 120: a blue car"


@dataclass(frozen=True)
class Prompts:
    """Prompts and the frames at which they start.

    Attributes:
        starts: first frame of each prompt, increasing. The first prompt also holds before it.
        texts: the prompts, one per start.
        blend: frames over which one prompt is cross-faded to the next, half of them on each side of the border; fewer
            if either prompt holds for fewer frames.
    """

    starts: tuple[int, ...]
    texts: tuple[str, ...]
    blend: int = 0

    def text_at(self, embeddings: Tensor, frames: Sequence[int]) -> Tensor:
        """Map embeddings ``k n d`` of ``texts`` and frame indices in the clip to each frame's embedding, ``t n d``."""
        position = self.position(frames)  # t
        first = position.floor().long()
        second = (first + 1).clamp(max=len(self.texts) - 1)
        share = (position - first).to(embeddings)[:, None, None]  # t 1 1
        first, second = first.to(embeddings.device), second.to(embeddings.device)
        return torch.lerp(embeddings[first], embeddings[second], share)  # exact at 0 and between equals

    def position(self, frames: Sequence[int]) -> Tensor:
        """Return ``t`` in float64: 1 where the second prompt holds alone, 1.25 a quarter of the way to the third."""
        held = torch.tensor((0, *self.starts[1:])).diff().double()  # of each prompt but the last, which has no end
        after = torch.cat([held[1:], held.new_tensor([torch.inf])])[: len(held)]
        width = torch.minimum(held, after).clamp(max=self.blend)  # so that no two cross-fades overlap
        borders = torch.tensor(self.starts[1:], dtype=torch.float64)
        middle = torch.tensor(frames, dtype=torch.float64)[:, None] + 0.5  # the middle of the frame; never on a border
        return ((middle - borders) / width + 0.5).clamp(0, 1).sum(dim=1)  # t k-1 -> t


def find_prompts(config: DictConfig) -> Prompts | None:
    """Return the prompts of ``--prompt-file``, or None. Raises ``UserError`` if ``--prompt`` is given too."""
    if config.prompt_file is None:
        return None
    if config.prompt is not None:
        raise UserError("give either --prompt or --prompt-file, and not both")
    return read_prompts(Path(config.prompt_file), config.prompt_blend)


def read_prompts(path: Path, blend: int) -> Prompts:
    """Read a file of lines ``frame: prompt``, such as ``120: a blue car``, with increasing frame numbers from 0.

    Empty lines and lines that begin with ``#`` are skipped. Nothing after the colon is the empty prompt. Raises
    ``UserError`` with the number of the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read {path} ({reason}); {_HINT}") from error
    starts, texts, last = list[int](), list[str](), -1
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
            raise UserError(f"{path}, line {number}: '{shown}' is not of the form 120: a blue car; correct it")
        frame, text = int(found[1]), found[2].strip()
        if frame <= last:
            raise UserError(f"{path}, line {number}: frame {frame} comes after frame {last}; put the lines in order")
        last = frame
        if not texts or text != texts[-1]:
            starts.append(frame)
            texts.append(text)
    if not texts:
        raise UserError(f"{path} has no prompts; {_HINT}")
    return Prompts(tuple(starts), tuple(texts), blend)
