"""Frozen text encoders: prompts -> token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase


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

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

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

    def save(self, folder: str | Path) -> None:
        """Write model and tokenizer to one folder, in transformers' layout."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: str | Path) -> TextEncoder:
        """Read what :meth:`save` wrote, safetensors only."""
        model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model, tokenizer)
