"""Pictures that are half the decoder's, half a published restorer's: where, at which enlargement, from which files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_video import convert
from ldm_video.core.evidence import Evidence, build_evidence, resize
from ldm_video.core.tensors import to_signed
from ldm_video.models.bundle import load_bundle, save_bundle
from ldm_video.models.dense_restorer import DenseRestorer
from ldm_video.models.paired_codec import PairedCodec
from ldm_video.models.real_esrgan import load_published
from ldm_video.pipeline.arguments import SHIPPED
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.training.losses import psnr
from tests.cli_support import ROOT, call, tiny_model
from tests.eval_support import read
from tests.model_stage_support import few_step_task, fit
from tests.model_support import box_hole, perturb, rand_pixels, randn, small_text_model, small_video_model
from tests.test_real_esrgan import drawn, published, write_ncnn

FRAMES = 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ncnn(tmp_path_factory.mktemp("published") / "net", published(blocks=1))


@pytest.fixture(scope="module")
def codec(files: Path) -> PairedCodec:
    paired = PairedCodec(4, (8, 8, 8, 4), (1, 1, 1), (8, 8), 1, share=0.25)
    perturb(paired.decoder)
    load_published(paired.restorer, files)
    return paired.eval().requires_grad_(False)


def restored(files: Path, lowres: Tensor) -> Tensor:
    """The published network alone: low-res frames ``n 3 h w`` in [-1, 1] -> ``n 3 4h 4w``."""
    network = DenseRestorer((8, 8), 1)
    load_published(network, files)
    return (drawn(network, lowres / 2 + 0.5) * 2 - 1).detach().clamp(-1, 1)


def evidence_of(low: tuple[int, int], size: tuple[int, int], hole: Tensor | None = None) -> Evidence:
    nothing = torch.zeros(1, FRAMES, 1, *size)
    return build_evidence(rand_pixels(1, FRAMES, 3, *low), nothing if hole is None else hole)


def latents_of(evidence: Evidence) -> Tensor:
    height, width = evidence.size
    return randn(1, FRAMES, 4, height // 8, width // 8)


def test_without_a_hole_it_is_the_weighted_mean(codec: PairedCodec, files: Path) -> None:
    evidence = evidence_of((16, 12), (64, 48))
    latents = latents_of(evidence)
    own, other = codec.decode(latents, evidence), restored(files, evidence.lowres[0])[None]
    assert (own - other).abs().mean() > 0.05
    torch.testing.assert_close(codec.finish(own, evidence), 0.75 * own + 0.25 * other, atol=1e-5, rtol=0)


def test_holes_are_the_decoders_alone_and_there_is_no_seam(codec: PairedCodec) -> None:
    hole = box_hole(FRAMES, (64, 96), slice(24, 40), slice(24, 40))
    evidence = evidence_of((16, 24), (64, 96), hole)
    latents = latents_of(evidence)
    own = codec.decode(latents, evidence)
    other = codec.restored(own, evidence)
    share = ((codec.finish(own, evidence) - own) / (other - own)).median(dim=2).values[0]  # t H W
    assert share[:, 20:44, 20:44].abs().max() < 1e-3
    assert (share[..., 64:] - 0.25).abs().max() < 1e-3
    assert share.diff(dim=-1).abs().max() < 0.25 / 6


def test_known_pixels_stay_as_they_are(codec: PairedCodec) -> None:
    known = torch.zeros(1, FRAMES, 1, 64, 64)
    known[..., 16:32, 16:32] = 1
    shown = build_evidence(
        rand_pixels(1, FRAMES, 3, 16, 16), 0 * known, known_pixels=rand_pixels(1, FRAMES, 3, 64, 64), known=known
    )
    latents = latents_of(shown)
    inside = (..., slice(16, 32), slice(16, 32))
    own = codec.decode(latents, shown)
    made = codec.finish(own, shown)
    assert torch.equal(made[inside], own[inside])
    assert not torch.equal(made, own)


@pytest.mark.parametrize(("low", "size"), [((24, 32), (48, 64)), ((15, 13), (64, 48))])
def test_another_enlargement_is_resized(
    low: tuple[int, int], size: tuple[int, int], files: Path, codec: PairedCodec
) -> None:
    """Twice, and one that leads from odd sides to a grid of eights."""
    evidence = evidence_of(low, size)
    expected = resize(restored(files, evidence.lowres[0])[None], size)
    torch.testing.assert_close(codec.restored(rand_pixels(1, FRAMES, 3, *size), evidence), expected, atol=1e-5, rtol=0)


def few_asked(files: Path) -> PairedCodec:
    """Asks the restorer for one of four frames."""
    paired = PairedCodec(4, (8, 8, 8, 4), (1, 1, 1), (8, 8), 1, share=0.25, every=4)
    perturb(paired.decoder)
    load_published(paired.restorer, files)
    return paired.eval().requires_grad_(False)


def record(monkeypatch: pytest.MonkeyPatch, paired: PairedCodec, method: str) -> list[tuple[tuple[Any, ...], Any]]:
    """What a method is given from here on, and what it makes."""
    calls, watched = [], getattr(paired, method)

    def recorded(*given: Any) -> Any:
        calls.append((given, watched(*given)))
        return calls[-1][1]

    monkeypatch.setattr(paired, method, recorded)
    return calls


def test_few_frames_are_asked_for_and_the_others_get_their_share(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a still clip of eight frames all get what two of them have."""
    paired = few_asked(files)
    lowres = rand_pixels(1, 1, 3, 20, 20).expand(1, 8, -1, -1, -1)
    evidence = build_evidence(lowres, torch.zeros(1, 8, 1, 80, 80))
    latents = torch.zeros(1, 8, 4, 10, 10)
    asked = record(monkeypatch, paired, "restored")
    own = paired.decode(latents, evidence)
    made = paired.finish(own, evidence)
    assert [given.guess.shape[1] for (_, given), _ in asked] == [2]
    expected = 0.25 * (paired.restored(own, evidence) - own)
    for key in (2, 6):
        torch.testing.assert_close((made - own)[:, key], expected[:, key], atol=1e-5, rtol=0)
    others = [0, 1, 3, 4, 5, 7]
    off = (made - own - expected)[:, others, :, 8:-8, 8:-8].abs().mean()
    # Before and behind the middle frames the decoder itself sees a border of time, so frames are not quite alike.
    assert off < 0.3 * expected[:, others, :, 8:-8, 8:-8].abs().mean()


@torch.no_grad()
def test_what_the_decoder_draws_anew_in_every_frame_is_left_out_where_motion_is_sure(files: Path) -> None:
    """At a share of 1 a still clip is as still as its key frames, however the decoder's pictures flicker."""
    paired = few_asked(files)
    paired.share = 1.0
    evidence = build_evidence(rand_pixels(1, 1, 3, 20, 20).expand(1, 4, -1, -1, -1), torch.zeros(1, 4, 1, 80, 80))
    own = evidence.guess + 0.2 * randn(1, 4, 3, 80, 80)
    inside = (..., slice(8, -8), slice(8, -8))
    flicker, left = (x.diff(dim=1)[inside].abs().mean() for x in (own, paired.finish(own, evidence)))
    assert left < 0.05 * flicker


def test_nothing_is_carried_into_a_hole_of_another_frame(files: Path) -> None:
    paired = few_asked(files)
    hole = torch.zeros(1, 4, 1, 80, 80)
    hole[:, 0, :, 24:56, 24:56] = 1  # the key frame, number 2, has none
    evidence = build_evidence(rand_pixels(1, 1, 3, 20, 20).expand(1, 4, -1, -1, -1), hole)
    latents = torch.zeros(1, 4, 4, 10, 10)
    own = paired.decode(latents, evidence)
    change = (paired.finish(own, evidence) - own).abs()
    assert change[:, 0, :, 24:56, 24:56].max() == 0
    assert change[:, 2, :, 24:56, 24:56].mean() > 0.01


def test_a_whole_segment_is_finished_at_once_and_in_tiles(files: Path) -> None:
    """The restorer is asked for one of four frames of the segment, however short the windows are; tiles agree."""
    model = small_video_model()
    model.codec = few_asked(files)
    frames, nothing = rand_pixels(1, 3, 20, 24).expand(8, -1, -1, -1), torch.zeros(8, 1, 80, 96)
    settings = RestoreSettings(steps=0, window=3, overlap=1, tile_overlap=32, colour="none")
    asked: list[Tensor] = []
    model.codec.restorer.register_forward_hook(lambda module, given, made: asked.append(made))
    whole, tiled = (
        Restorer(model, replace(settings, tile=tile))(frames, nothing, range(8)) for tile in (None, (64, 64))
    )
    assert len(asked) == 2 * (1 + 4)  # one picture, and four tiles
    model.codec.share = 0.0
    alone = Restorer(model, settings)(frames, nothing, range(8))
    assert (tiled - whole).abs().mean() < 0.1 * (alone - whole).abs().mean()


def test_inpainting_alone_does_not_ask_the_restorer(codec: PairedCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "restored", None)
    evidence = evidence_of((48, 64), (48, 64))
    own = codec.decode(latents_of(evidence), evidence)
    assert torch.equal(codec.finish(own, evidence), own)


def test_only_the_decoder_is_trained(codec: PairedCodec) -> None:
    fresh = PairedCodec(4, (8, 8, 8, 4), (1, 1, 1), (8, 8), 1)
    assert {id(p) for p in fresh.decoder_parameters()} == {id(p) for p in fresh.decoder.parameters()}
    assert not any(p.requires_grad for p in fresh.restorer.parameters())


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:Found .* in eval mode")
def test_a_pair_is_trained_as_its_decoder_alone(files: Path) -> None:
    """The shipped model may be trained on as it is; its restorer is neither asked nor changed."""
    model = tiny_model()
    model.codec = few_asked(files)
    before = {name: weight.clone() for name, weight in model.codec.state_dict().items()}
    model.codec.restorer.register_forward_hook(lambda *call: pytest.fail("the restorer was asked"))
    fit(few_step_task(model, decoder_share=1.0), steps=2)
    changed = {
        name.partition(".")[0] for name, weight in model.codec.state_dict().items() if weight.ne(before[name]).any()
    }
    assert changed == {"decoder"}


def test_a_restorer_is_added_to_a_bundle(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_video_model()
    save_bundle(model, tmp_path / "small")
    assert (
        call(convert, "add-restorer", tmp_path / "small", files, tmp_path / "both", "--share", "0.5", "--every", "1")
        == 0
    )
    assert "0.5 of the picture, drawn for one of 1 frames" in capsys.readouterr().out
    both = load_bundle(tmp_path / "both")
    assert isinstance(both.codec, PairedCodec)
    assert both.sampling == model.sampling
    notice = (tmp_path / "both" / "NOTICE.txt").read_text()
    assert "Copyright (c) 2021, Xintao Wang" in notice
    assert notice == (SHIPPED / "NOTICE.txt").read_text()
    assert not (tmp_path / "small" / "NOTICE.txt").exists()
    evidence = evidence_of((16, 16), (64, 64))
    latents = latents_of(evidence)
    own, other = model.codec.decode(latents, evidence), restored(files, evidence.lowres[0])[None]
    assert torch.equal(both.codec.decode(latents, evidence), own)
    torch.testing.assert_close(both.codec.finish(own, evidence), (own + other) / 2, atol=1e-5, rtol=0)
    assert call(convert, "remove-restorer", tmp_path / "both", tmp_path / "again") == 0
    again, before = load_bundle(tmp_path / "again").state_dict(), model.state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_what_cannot_be_paired_is_refused_in_one_line(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_bundle(small_video_model(), tmp_path / "small")
    save_bundle(small_text_model(tmp_path / "text"), tmp_path / "image")
    partial = write_ncnn(tmp_path / "partial", published(blocks=1)[:-1])
    for model, network, word in (
        (tmp_path / "image", files, "beside a VideoCodec"),
        (tmp_path / "small", tmp_path / "absent", "cannot read"),
        (tmp_path / "small", partial, "no whole number of blocks"),
        (tmp_path / "small", None, "no restorer to be removed"),
    ):
        words = ["remove-restorer", model] if network is None else ["add-restorer", model, network]
        assert call(convert, *words, tmp_path / "no") == 2
        assert word in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("low", "asked"), [(32, 0), (24, 1)])
def test_below_twice_the_sides_the_restorer_is_not_asked(
    low: int, asked: int, codec: PairedCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enlargements to 48 pixels by 1.5 and by 2: four times the pixels are enough."""
    calls, evidence = record(monkeypatch, codec, "restored"), evidence_of((low, low), (48, 48))
    own = codec.decode(latents_of(evidence), evidence)
    assert torch.equal(codec.finish(own, evidence), own) == (not asked)
    assert len(calls) == asked


@torch.no_grad()
def test_the_model_that_ships_is_nearer_to_the_truth_than_its_parts() -> None:
    """A part of a frame of the demo clip."""
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 64e6
    codec = load_bundle(SHIPPED).codec
    assert isinstance(codec, PairedCodec)
    truth = to_signed(torch.from_numpy(read(ROOT / "data/samples/city_reference.mp4")[20])).permute(2, 0, 1)
    truth = truth[:, 80:272, 240:432]  # 3 H W
    lowres = resize(truth[None, None], (48, 48))
    evidence = build_evidence(lowres, torch.zeros(1, 1, 1, 192, 192))
    latents = torch.zeros(1, 1, codec.latent_channels, 24, 24)
    own = codec.decode(latents, evidence)
    pictures = [codec.finish(own, evidence), own, codec.restored(own, evidence)]
    both, *alone = [float(psnr(picture, truth[None, None])) for picture in pictures]
    assert both > max(alone) + 0.1
