"""Temporal layers against independent formulas: complex rotations, nn.Conv1d, dense attention."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.models import temporal
from ldm_video.models.rotary import apply_rotary, rotary_angles
from ldm_video.models.temporal import FrameConv, RotaryAttention, TemporalBlock, TemporalConfig, head_count


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def awake(block: TemporalBlock) -> TemporalBlock:
    """The block with random output layers in place of zeros."""
    for seed, layer in enumerate(block.output_layers()):
        layer.weight.data = 0.1 * noise(*layer.weight.shape, seed=seed)
    return block


def as_complex(x: Tensor) -> Tensor:
    """Channel pairs ``(i, i + dim / 2)`` as complex numbers in double precision."""
    real, imaginary = x.double().chunk(2, dim=-1)
    return torch.complex(real, imaginary)


def test_rotary_is_multiplication_by_unit_complex_numbers() -> None:
    x = noise(2, 5, 8)
    turned = as_complex(apply_rotary(x, rotary_angles(8, 8)[3:]))
    for position in range(5):
        for pair in range(4):
            angle = torch.tensor((3 + position) * 10000 ** (-2 * pair / 8), dtype=torch.float64)
            expected = as_complex(x)[:, position, pair] * torch.polar(torch.ones_like(angle), angle)
            torch.testing.assert_close(turned[:, position, pair], expected, atol=1e-5, rtol=1e-5)


def test_rotary_scores_depend_on_distance_alone() -> None:
    query, key = noise(6, 16, seed=1), noise(6, 16, seed=2)
    here, far = (rotary_angles(47, 16)[start : start + 6] for start in (0, 41))
    scores = apply_rotary(query, here) @ apply_rotary(key, here).T
    shifted = apply_rotary(query, far) @ apply_rotary(key, far).T
    torch.testing.assert_close(shifted, scores, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(scores, query @ key.T, atol=0.1)  # positions do matter


def test_attention_is_dense_attention_with_rotary() -> None:
    torch.manual_seed(0)
    attention = RotaryAttention(channels=12, heads=2)
    x = noise(4, 5, 12)
    turn = torch.polar(torch.ones(()).double(), rotary_angles(5, 6).double())
    heads = []
    for head in range(2):
        rows = slice(6 * head, 6 * head + 6)
        query, key, value = (x @ layer.weight[rows].T for layer in (attention.to_q, attention.to_k, attention.to_v))
        scores = torch.einsum("nqd,nkd->nqk", as_complex(query) * turn, (as_complex(key) * turn).conj()).real
        heads.append((scores / 6**0.5).softmax(-1) @ value.double())
    expected = attention.to_out[0](torch.cat(heads, dim=-1).float())
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


def test_attention_splits_batches_that_a_kernel_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, x = RotaryAttention(8, 4), noise(10, 3, 8)
    whole = attention(x)
    monkeypatch.setattr(temporal, "_MAX_BATCH", 4)
    torch.testing.assert_close(attention(x), whole)


def test_attention_keeps_its_positions_when_diffusers_sets_the_processor() -> None:
    attention, x = RotaryAttention(8, 4), noise(10, 3, 8)
    before = attention(x)
    attention.set_processor(AttnProcessor2_0())
    assert torch.equal(attention(x), before)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_frame_conv_is_conv1d_with_replicated_edges(kernel: int, frames: int) -> None:
    torch.manual_seed(0)
    conv, x = FrameConv(4, kernel), noise(3, frames, 4)
    reference = nn.Conv1d(4, 4, kernel, padding=kernel // 2, padding_mode="replicate")
    reference.weight.data = conv.weight.data.view(4, kernel, 4).transpose(1, 2)
    reference.bias.data = conv.bias.data
    expected = reference(x.transpose(1, 2)).transpose(1, 2)  # n t c
    torch.testing.assert_close(conv(x), expected)
    clips = x.view(3, 1, 1, frames, 4).permute(0, 3, 1, 2, 4)  # b t h w c
    torch.testing.assert_close(conv(clips), expected.view(3, frames, 1, 1, 4))


@pytest.mark.parametrize(("attention", "conv"), [(True, True), (True, False), (False, True)])
def test_new_block_returns_its_input_and_an_awake_one_does_not(attention: bool, conv: bool) -> None:
    block, x = TemporalBlock(8, TemporalConfig(head_dim=4), attention, conv), noise(6, 8, 3, 5)
    assert torch.equal(block(x, 3), x)
    assert not torch.allclose(awake(block)(x, 3), x, atol=1e-2)
    assert not torch.allclose(block(x[:2], 1), x[:2], atol=1e-2)  # one frame goes through the same layers


def test_block_mixes_frames_within_a_pixel_of_a_clip_alone() -> None:
    block, x = awake(TemporalBlock(8, TemporalConfig(head_dim=4))), noise(2 * 4, 8, 3, 5)
    touched = x.clone()
    touched[0, :, 1, 2] += noise(8, seed=5)  # clip 0, frame 0, one pixel
    changed = (block(touched, 4) != block(x, 4)).any(dim=1)  # (b t) h w
    expected = torch.zeros_like(changed)
    expected[:4, 1, 2] = True
    assert torch.equal(changed, expected)


def test_block_keeps_the_memory_layout() -> None:
    block, x = awake(TemporalBlock(8, TemporalConfig(head_dim=4))), noise(4, 8, 3, 5)
    assert block(x, 4).is_contiguous()
    channels_last = x.to(memory_format=torch.channels_last)
    assert block(channels_last, 4).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(channels_last, 4), block(x, 4))


@pytest.mark.parametrize(("channels", "head_dim", "heads"), [(320, 32, 10), (16, 32, 1), (64, 32, 2), (48, 32, 1)])
def test_head_count(channels: int, head_dim: int, heads: int) -> None:
    assert head_count(channels, head_dim) == heads


@pytest.mark.parametrize(("channels", "head_dim"), [(100, 32), (12, 3), (7, 32)])
def test_channels_that_do_not_split_are_a_user_error(channels: int, head_dim: int) -> None:
    with pytest.raises(UserError, match=f"{channels} channels do not split"):
        head_count(channels, head_dim)


def test_config_refuses_impossible_values_and_reads_lists() -> None:
    with pytest.raises(UserError, match="kernel is 2"):
        TemporalConfig(kernel=2)
    with pytest.raises(UserError, match="heads is 0"):
        TemporalConfig(heads=0)
    with pytest.raises(UserError, match="100 channels do not split into 8 temporal heads"):
        TemporalConfig(heads=8).heads_of(100)
    assert [TemporalConfig(heads=8).heads_of(c) for c in (320, 640, 1280)] == [8, 8, 8]
    with pytest.raises(UserError, match="head_dim is 0"):
        TemporalConfig(head_dim=0)
    config = TemporalConfig(attention_levels=[1, 2], conv_levels=[])  # type: ignore[arg-type]
    assert config == TemporalConfig(attention_levels=(1, 2), conv_levels=())
    assert [config.has_attention(level) for level in range(3)] == [False, True, True]
    assert not config.has_conv(0)
