"""What people watch: pictures, metrics, speed, gradients; and that watching changes nothing."""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from eval.metrics.backbones import lpips_network
from eval.metrics.fidelity import psnr
from ldm_video.training.average import WarmAverage
from ldm_video.training.codec_task import CodecTask
from ldm_video.training.few_step_task import FewStepTask
from ldm_video.training.losses import PixelLoss
from ldm_video.training.stage import Stage
from ldm_video.training.watch import GradientNorms, Pictures, Speed
from ldm_video.training.watch.pictures import measure, row
from ldm_video.training.watch.speed import peak_memory
from ldm_video.training.watch.undisturbed import undisturbed
from tests.cli_support import read_pixels, tiny_model

ADAMW = partial(torch.optim.AdamW, lr=1e-2)
FRAMES, SIDE = 3, 32


class Clips(Dataset):
    """Smooth random clips with a hole in a corner; an item is a function of its index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        generator = torch.Generator().manual_seed(index)
        rough = torch.rand(FRAMES, 3, SIDE // 8, SIDE // 8, generator=generator) * 1.6 - 0.8
        hr = torch.nn.functional.interpolate(rough, size=(SIDE, SIDE), mode="bicubic").clamp(-1, 1)
        hole = torch.zeros(FRAMES, 1, SIDE, SIDE)
        hole[..., :8, :12] = 1
        return {"hr": hr, "lr": hr[..., ::4, ::4].clone(), "hole": hole, "name": f"clip{index}"}


def few_step() -> FewStepTask:
    return FewStepTask(tiny_model(), PixelLoss(None), ADAMW, warmup=1)


def codec() -> CodecTask:
    return CodecTask(tiny_model().codec, PixelLoss(None), ADAMW, warmup=1)


def fit(stage: Stage, folder: Path, callbacks: list[pl.Callback], steps: int = 3, **options: Any) -> list[dict]:
    """Train for some steps of two clips each; returns the rows of the CSV log."""
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=CSVLogger(folder, name="log", version="0"), callbacks=callbacks,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        **options,
    )  # fmt: skip
    accumulate = options.get("accumulate_grad_batches", 1)
    trainer.fit(stage, DataLoader(Clips(2 * steps * accumulate), batch_size=2))
    log = folder / "log" / "0" / "metrics.csv"
    return list(csv.DictReader(log.open())) if log.exists() else []


def column(rows: list[dict], name: str) -> dict[int, float]:
    """Step -> value of a series."""
    return {int(line["step"]): float(line[name]) for line in rows if line.get(name)}


def restless(a: np.ndarray, b: np.ndarray) -> float:
    """A metric that draws from every global generator."""
    return random.random() + np.random.random() + float(torch.rand(()))


def global_states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_watching_changes_nothing(tmp_path: Path) -> None:
    """Weights, averaged weights and global random states, bit for bit, with averaging on."""
    results = []
    for watched in (False, True):
        stage, average = few_step(), WarmAverage(0.5)
        callbacks: list[pl.Callback] = [average]
        if watched:
            callbacks.append(Pictures(tmp_path / "media", Clips(1), every=1, metrics={"restless": restless}))
        pl.seed_everything(1, verbose=False)
        current: list[Tensor] = []
        callbacks.append(Snapshot(current))
        fit(stage, tmp_path / str(watched), callbacks)
        results.append((stage.state_dict(), current, global_states()))
    (plain, plain_steps, plain_states), (seen, seen_steps, seen_states) = results
    assert (tmp_path / "media" / "step_00000003.png").exists()
    assert all(torch.equal(plain[key], seen[key]) for key in plain)
    assert all(torch.equal(a, b) for a, b in zip(plain_steps, seen_steps, strict=True))
    assert len({str(step.tolist()) for step in plain_steps}) == 3  # it did learn in between
    assert plain_states == seen_states


class Snapshot(pl.Callback):
    """The weights that are trained (not the average) after each step."""

    def __init__(self, kept: list[Tensor]) -> None:
        self.kept = kept

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.kept.append(torch.cat([p.detach().flatten() for p in pl_module.parameters() if p.requires_grad]))


def test_the_averaged_weights_are_shown(tmp_path: Path) -> None:
    """The last look's output is what the stage gives after the training, when the average is in its place."""
    shown: list[np.ndarray] = []

    def remember(output: np.ndarray, reference: np.ndarray) -> float:
        shown.append(output)
        return 0.0

    stage, trained = few_step(), list[Tensor]()
    pictures = Pictures(tmp_path, Clips(1), every=100, metrics={"remember": remember})
    shown.clear()  # the trial at the start
    fit(stage, tmp_path, [WarmAverage(0.5), pictures, Snapshot(trained)])
    last = torch.cat([p.detach().flatten() for p in stage.parameters() if p.requires_grad])
    assert not torch.equal(last, trained[-1])  # averaging made a difference
    stage.eval()
    with torch.no_grad():
        expected = stage.restore(default_collate([Clips(1)[0]]))[0].clamp(-1, 1)  # t 3 H W
    assert np.array_equal(np.stack(shown), ((expected + 1) / 2).permute(0, 2, 3, 1).numpy())


def test_looks_come_every_so_many_steps_and_after_the_last(tmp_path: Path) -> None:
    """Steps, not batches: gradients of two batches are accumulated."""
    pictures = Pictures(tmp_path / "media", Clips(1), every=2, metrics={"psnr": psnr, "left_out": None})
    rows = fit(codec(), tmp_path, [pictures], steps=5, accumulate_grad_batches=2)
    names = [f"step_0000000{step}{suffix}" for step in (2, 4, 5) for suffix in (".mp4", ".png")]
    assert sorted(path.name for path in (tmp_path / "media").iterdir()) == names
    assert sorted(column(rows, "restored/psnr")) == [2, 4, 5]
    assert "restored/left_out" not in rows[-1]


def test_strip_video_and_metric_of_known_pixels(tmp_path: Path) -> None:
    """A codec whose last layer is zero returns the evidence's guess, so every pixel and the PSNR are known."""
    stage, clips = codec(), Clips(2)
    with torch.no_grad():
        for parameter in stage.codec.decoder.exit.parameters():
            parameter.zero_()
    stage.make_optimizer = partial(torch.optim.SGD, lr=0.0)
    rows = fit(stage, tmp_path, [Pictures(tmp_path / "media", clips, every=1, metrics={"psnr": psnr})], steps=1)
    expected, scores = [], []
    for index in range(2):
        batch: Mapping[str, Any] = default_collate([clips[index]])
        output = stage.restore(batch)[0].detach().clamp(-1, 1)
        expected.append(row(batch, output))
        pair = [((x + 1) / 2).permute(0, 2, 3, 1).numpy() for x in (batch["hr"][0], output)]
        scores.append(np.mean([peak_signal_noise_ratio(*frames, data_range=1) for frames in zip(*pair, strict=True)]))
    grid = torch.cat(expected, dim=-2)  # t 3 2H 3W
    truth = ((grid + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    strip = read_pixels(tmp_path / "media" / "step_00000001.png")
    video = read_pixels(tmp_path / "media" / "step_00000001.mp4")
    assert strip.shape == (1, 2 * SIDE, 3 * SIDE, 3)
    assert np.abs(strip[0] - truth[FRAMES // 2]).max() <= 0.51
    assert video.shape == (FRAMES, 2 * SIDE, 3 * SIDE, 3)
    assert np.abs(video - truth).mean() < 6  # 4:2:0
    assert column(rows, "restored/psnr") == {1: pytest.approx(np.mean(scores), abs=1e-3)}


def test_a_row_shows_input_output_and_reference() -> None:
    batch, output = default_collate([Clips(1)[0]]), torch.full((FRAMES, 3, SIDE, SIDE), 0.25)
    left, middle, right = row(batch, output).split(SIDE, dim=-1)
    assert torch.equal(middle, output) and torch.equal(right, batch["hr"][0])
    assert not left[..., :8, :12].any()  # the hole
    squares = batch["lr"][0].repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert torch.equal(left[..., 8:, 12:], squares[..., 8:, 12:])


def test_measure_is_the_mean_over_frames() -> None:
    reference = torch.zeros(2, 3, 16, 16)
    output = torch.stack([reference[0] + 0.2, reference[1] + 0.02])  # 0.1 and 0.01 of the range: 20 and 40 dB
    assert measure({"psnr": psnr}, output, reference) == {"psnr": pytest.approx(30.0, abs=1e-3)}


def test_a_metric_that_cannot_run_fails_before_the_training(tmp_path: Path) -> None:
    def broken(a: np.ndarray, b: np.ndarray) -> float:
        raise RuntimeError("no backbone")

    with pytest.raises(RuntimeError, match="no backbone"):
        Pictures(tmp_path, Clips(1), metrics={"broken": broken})
    with pytest.raises(ValueError, match="every"):
        Pictures(tmp_path, Clips(1), every=0)


def test_undisturbed_gives_every_part_its_own_mode_back() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout()))
    module[1].eval()
    before = global_states()
    with undisturbed(module):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
        restless(np.zeros(1), np.zeros(1))
    assert [part.training for part in module.modules()] == [True, True, False, False]
    assert torch.is_grad_enabled() and global_states() == before


def test_a_trainers_perceptual_network_is_its_own() -> None:
    """The trainer moves it to the GPU; the one that the metrics share must stay where it is."""
    shared, own = lpips_network("alex"), lpips_network("alex", shared=False)
    own.to(torch.float64)
    assert lpips_network("alex") is shared
    assert {p.dtype for p in shared.parameters()} == {torch.float32}


class Slow(CodecTask):
    """At least a tenth of a second a batch."""

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        time.sleep(0.1)
        return super().training_step(batch, index)


def test_speed_counts_clips_and_frames_of_steps_alone(tmp_path: Path) -> None:
    class Pause(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            time.sleep(0.5)

    stage = Slow(tiny_model().codec, PixelLoss(None), ADAMW, warmup=1)
    started = time.perf_counter()
    rows = fit(stage, tmp_path, [Speed(), Pause()], steps=2, accumulate_grad_batches=2)
    elapsed = time.perf_counter() - started
    clips = column(rows, "speed/clips_per_second")
    frames = column(rows, "speed/frames_per_second")
    assert sorted(clips) == [0, 1]
    # Two batches of two clips: 0.2 s asleep, and the pause of 0.5 s between them, but not the one after them.
    assert all(0 < speed <= 4 / 0.7 for speed in clips.values())
    assert elapsed >= 4 / clips[0] + 4 / clips[1] + 2 * 0.5
    assert all(frames[step] == pytest.approx(FRAMES * clips[step]) for step in clips)


def test_peak_memory_is_at_least_what_is_held_now() -> None:
    held = np.ones(50_000_000, np.uint8)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    slack = 2**22  # the kernel adds up its counters of resident pages now and then
    assert held.nbytes < pages * 4096 <= peak_memory(torch.device("cpu")) + slack


def test_gradient_norms_by_part(tmp_path: Path) -> None:
    expected: dict[str, list[float]] = {"spatial": [], "temporal": [], "codec": []}

    class Reference(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            squares = dict.fromkeys(expected, 0.0)
            for name, parameter in pl_module.model.named_parameters():
                if parameter.grad is not None:
                    part = "codec" if name.startswith("codec") else "temporal" if ".temporal." in name else "spatial"
                    squares[part] += float(parameter.grad.double().square().sum())
            for part, total in squares.items():
                expected[part].append(total**0.5)

    rows = fit(few_step(), tmp_path, [GradientNorms(), Reference()], steps=2, gradient_clip_val=1e-3)
    for part, values in expected.items():
        assert list(column(rows, f"gradient/{part}").values()) == pytest.approx(values, rel=1e-4)
        assert min(values) > 0
