"""Prompts as diffusers' pipelines read them, and prompts that are too long for those."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.models.text import TextEncoder
from tests.sd_checkpoints import TEXT_WIDTH, pipeline_of, write_pipeline

PROMPTS = ["the cat", "", "a street in the rain, 1920s; the dog's café", "x " * 73 + "cat cat"]


@pytest.fixture(scope="module", params=["sd2-inpainting", "sd15"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("sd") / request.param, request.param)


@pytest.fixture
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.load(folder / "text_encoder", folder / "tokenizer")


def by_hand(encoder: TextEncoder, ids: list[int]) -> Tensor:
    """``1 77 d`` of token numbers between start and end token, padded."""
    vocabulary = encoder.tokenizer.get_vocab()
    row = [vocabulary["<|startoftext|>"], *ids, vocabulary["<|endoftext|>"]]
    pad = vocabulary[encoder.tokenizer.pad_token]
    return encoder.model(torch.tensor([row + [pad] * (77 - len(row))])).last_hidden_state


def test_prompts_that_fit_are_diffusers(folder: Path, encoder: TextEncoder) -> None:
    pipeline = pipeline_of(folder)
    for prompt in PROMPTS:
        expected, negative = pipeline.encode_prompt(prompt, "cpu", 1, True, negative_prompt="the dog")
        ours = encoder([prompt, "the dog"])
        assert ours.shape == (2, 77, TEXT_WIDTH)
        torch.testing.assert_close(ours, torch.cat([expected, negative]), atol=1e-5, rtol=0)


def test_a_long_prompt_is_read_in_pieces(encoder: TextEncoder) -> None:
    text = " ".join(["cat", "the", "dog", "a", "x"] * 40)  # 200 words, one token each
    ids = encoder.tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == 200
    ours = encoder([text, "blurry"])
    assert ours.shape == (2, 3 * 77, TEXT_WIDTH)
    pieces = [by_hand(encoder, ids[first : first + 75]) for first in (0, 75, 150)]
    torch.testing.assert_close(ours[:1], torch.cat(pieces, dim=1), atol=1e-5, rtol=0)
    # The negative prompt is as long, because guidance asks both in one batch: to attention it is what it was.
    short = by_hand(encoder, encoder.tokenizer("blurry", add_special_tokens=False).input_ids)
    torch.testing.assert_close(ours[1:], short.repeat(1, 3, 1), atol=1e-5, rtol=0)


def test_a_tokenizer_that_does_not_say_how_long_prompts_are(folder: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    """Its length is 1e30 then; the model has 77 positions."""
    tokenizer = shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    silent = TextEncoder.load(folder / "text_encoder", tokenizer)
    for prompts in (["the cat", ""], ["cat " * 100]):
        torch.testing.assert_close(silent(prompts), encoder(prompts))


def test_the_end_of_a_long_prompt_has_a_say(encoder: TextEncoder) -> None:
    start = "x " * 90
    assert (encoder([start + "cat"]) - encoder([start + "dog"])).abs().max() > 1e-3


@pytest.mark.parametrize(("words", "pieces"), [(0, 1), (75, 1), (76, 2), (150, 2), (151, 3), (225, 3), (226, 4)])
def test_the_border_of_a_piece(words: int, pieces: int, encoder: TextEncoder) -> None:
    assert encoder(["x " * words]).shape[1] == 77 * pieces


def test_no_prompt_has_a_say_in_how_another_is_read(encoder: TextEncoder) -> None:
    """Attention to each of them gives what it gives to the prompt alone."""
    prompts = ["the cat", "x " * 100 + "dog", "cat x " * 100]
    queries, together = torch.randn(1, 5, TEXT_WIDTH), encoder(prompts)
    for prompt, text in zip(prompts, together, strict=True):
        seen, alone = (F.scaled_dot_product_attention(queries, x, x) for x in (text[None], encoder([prompt])))
        torch.testing.assert_close(seen, alone, atol=1e-5, rtol=0)
