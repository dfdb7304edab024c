"""Frozen text encoders: prompts -> token embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from einops import repeat
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from ldm_video.core.checkpoints import read_json, refuse_keys, save_weights
from ldm_video.core.errors import UserError
from ldm_video.models.quiet import quiet

_CLIP_PREFIX = "text_model."


class TextEncoder(nn.Module):
    """A frozen transformers text model and its tokenizer (CLIP in Stable Diffusion checkpoints).

    Args:
        model: returns ``last_hidden_state``, ``b n d``.
        tokenizer: the model's own.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """b prompts -> ``b n d``, padded to the model's length, as in Stable Diffusion's training.

        A prompt longer than the model's limit (75 tokens for CLIP) is split into pieces, each with its own start and
        end token. Prompts of different lengths are repeated to their least common multiple ``n``: attention to a
        repeated text equals attention to the text, so no prompt affects how another is read. If the tokenizer has no
        start token, the prompt is truncated instead.
        """
        pieces = [self._pieces(prompt) for prompt in prompts]
        ids, mask = self._pad([row for rows in pieces for row in rows])  # k n
        uses_mask = getattr(self.model.config, "use_attention_mask", False)
        hidden = self.model(ids, attention_mask=mask if uses_mask else None).last_hidden_state  # k n d
        texts = hidden.split([len(rows) for rows in pieces])
        count = math.lcm(*map(len, texts))
        return torch.stack([repeat(text, "k n d -> (r k n) d", r=count // len(text)) for text in texts])  # b n d

    @property
    def _length(self) -> int:
        """Tokens per piece: the tokenizer's limit, which may be unset (1e30), but at most the number of positions."""
        length = self.tokenizer.model_max_length
        return min(length, getattr(self.model.config, "max_position_embeddings", length))

    def _pieces(self, prompt: str) -> list[list[int]]:
        """Return the token ids of each piece of a prompt: at least one piece, none longer than the model's length."""
        start, end, length = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self._length
        if start is None:
            return [self.tokenizer(prompt, truncation=True, max_length=length).input_ids]
        ids = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        body = length - 2
        return [[start, *ids[first : first + body], end] for first in range(0, max(len(ids), 1), body)]

    def _pad(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Pad rows of ids to ``k n`` with the model's length ``n``; also return a mask, 1 where there is a token."""
        device, length = next(self.model.parameters()).device, self._length
        missing = [length - len(row) for row in rows]
        ids = [row + [self.tokenizer.pad_token_id] * n for row, n in zip(rows, missing, strict=True)]
        mask = [[1] * len(row) + [0] * n for row, n in zip(rows, missing, strict=True)]
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model, with weights cast to ``dtype``, and the tokenizer to one folder in transformers' layout."""
        save_text_model(self.model, Path(folder), dtype)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(
        cls, folder: str | Path, tokenizer_folder: str | Path | None = None, variant: str | None = None
    ) -> TextEncoder:
        """Read what :meth:`save` wrote, or a ``text_encoder`` folder of diffusers with its ``tokenizer``, in float32.

        Safetensors only, and strict: raises ``UserError`` for weights that are missing, damaged or of another model.
        ``variant``: of the weights file, such as ``fp16``.
        """
        folder = Path(folder)
        architecture = _architecture(folder / "config.json")
        try:
            with quiet("transformers"):
                model, report = architecture.from_pretrained(
                    folder,
                    use_safetensors=True,
                    variant=variant,
                    local_files_only=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported below
                    dtype=torch.float32,
                )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder} is not a whole text encoder ({error}); copy it again") from error
        misshapen = [key for key, *_ in report["mismatched_keys"]]  # (key, shape, shape)
        refuse_keys(folder, report["missing_keys"], report["unexpected_keys"], misshapen)
        return cls(model, read_tokenizer(Path(tokenizer_folder or folder)))


def save_text_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a text model in transformers' layout, with weights cast to ``dtype`` under their published names.

    CLIP's published names start with ``text_model``. Newer transformers versions drop that prefix; they read both and
    write what they have read. Older versions and other tools do not accept CLIP weights without it.
    """
    with quiet("transformers"):
        model.save_pretrained(folder)
    lacks = isinstance(model, CLIPTextModel) and not any(key.startswith(_CLIP_PREFIX) for key in model.state_dict())
    if lacks or dtype is not None:
        save_weights(model, folder / "model.safetensors", dtype, _CLIP_PREFIX if lacks else "")


def read_tokenizer(folder: Path, **options: str) -> PreTrainedTokenizerBase:
    """Read the tokenizer in ``folder``, in transformers' layout; ``options`` override what is stored.

    Raises ``UserError`` if files are missing or damaged.
    """
    if not folder.is_dir():  # transformers would take the path for a hub repository
        raise UserError(
            f"{folder.parent} has no {folder.name}, which its text encoder needs; the model is not whole, copy or "
            "download it again"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # the tokenizers library raises plain Exception for a truncated vocabulary
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder} has no whole tokenizer of a text encoder ({reason}); copy it again") from error


def _architecture(config: Path) -> type[PreTrainedModel]:
    """Return the class that config.json names. ``AutoModel`` would build all of T5 where only the encoder is stored."""
    try:
        name = read_json(config)["architectures"][0]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{config} does not name its architecture; copy the bundle again") from error
    found = getattr(transformers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UserError(f"unknown text encoder '{name}' in {config}; give the name of a transformers model")
    return found
