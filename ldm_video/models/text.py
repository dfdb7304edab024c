"""Frozen text encoders: prompts -> token embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ldm_video.core.checkpoints import save_weights
from ldm_video.core.errors import UserError


class TextEncoder(nn.Module):
    """A transformers text model and its tokenizer (CLIP in the Stable Diffusion checkpoints), frozen.

    Args:
        model: gives ``last_hidden_state`` of width ``width``.
        tokenizer: the model's own.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """b prompts -> ``b n d``, padded and cut to the model's length, as Stable Diffusion was trained."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(next(self.model.parameters()).device)
        mask = tokens.attention_mask if getattr(self.model.config, "use_attention_mask", False) else None
        return self.model(tokens.input_ids, attention_mask=mask).last_hidden_state  # b n d

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write model, with weights cast to ``dtype``, and tokenizer to one folder, in transformers' layout."""
        self.model.save_pretrained(folder)
        if dtype is not None:
            save_weights(self.model, Path(folder) / "model.safetensors", dtype)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: str | Path) -> TextEncoder:
        """Read what :meth:`save` wrote, or a ``text_encoder`` folder of diffusers with its tokenizer, in float32.

        Safetensors only, and strict: raises ``UserError`` for weights that are missing, damaged or of another model.
        """
        folder = Path(folder)
        architecture = _architecture(folder / "config.json")
        try:
            model, report = architecture.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to name them below
                dtype=torch.float32,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder} is not a whole text encoder ({error}); copy it again") from error
        for problem in ("missing", "unexpected", "mismatched"):
            if keys := sorted(str(key) for key in report[f"{problem}_keys"]):
                raise UserError(f"{folder}: key {keys[0]} {problem}; weights and config.json do not belong together")
        return cls(model, tokenizer)


def _architecture(config: Path) -> type[PreTrainedModel]:
    """The class that config.json names. ``AutoModel`` would take T5 whole, where only its encoder was saved."""
    if not config.is_file():
        raise UserError(f"{config.parent} has no config.json; the bundle is not whole, copy it again")
    try:
        name = json.loads(config.read_text())["architectures"][0]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{config} does not name its architecture; copy the bundle again") from error
    found = getattr(transformers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UserError(f"unknown text encoder '{name}' in {config}; give the name of a transformers model")
    return found
