"""What ends or resumes a run: NaN, another configuration; and its precision, compilation and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import train
from ldm_video.config import load_config, save_config
from ldm_video.core.errors import UserError
from ldm_video.diffusion.objective import Objective
from ldm_video.training.denoiser_task import DenoiserTask
from ldm_video.training.same_run import check_fits, check_same_run
from tests.cli_support import ROOT, call, files_below, tiny_model
from tests.model_stage_support import TASKS, denoiser_task, few_step_task
from tests.task_support import ADAMW, make_batch
from tests.train_support import overfit_options

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log", "ignore:You defined a `validation_step`")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> list[str]:
    """A codec that trains for a few steps in a second."""
    folder = tmp_path_factory.mktemp("data")
    write_video(folder / "clips" / "a.mp4", frames=4, size=(112, 128))
    return [*overfit_options(folder), "checkpoint_every=1"]


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# A loss that is not finite.


def test_a_run_that_diverges_stops_with_its_batch_saved(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert call(train, *options, f"output={run}", "optimizer.lr=1e30", "task.warmup=0") == 2
    line = last_line(capsys)
    (saved,) = run.glob("bad_batch_*.safetensors")
    assert line.startswith("error: the ") and f"its batch is saved in {saved}" in line
    batch = load_file(saved)
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "hr": (1, 2, 3, 64, 64), "lr": (1, 2, 3, 16, 16), "hole": (1, 2, 1, 64, 64),
    }  # fmt: skip
    assert torch.isfinite(batch["hr"]).all()
    with safe_open(saved, "pt") as file:
        assert "a.mp4" in json.loads(file.metadata()["name"])[0]
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    step = int(saved.name.split("step")[1].split("_")[0])
    assert last["global_step"] == step  # the step that failed is not in it
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())
    assert not (run / "bundle").exists()


def quick_fit(task: pl.LightningModule, folder: Path, batch: dict[str, Any], **options: Any) -> None:
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    trainer.fit(task, DataLoader([batch], batch_size=None))


@pytest.mark.parametrize("name", list(TASKS))
def test_a_batch_with_nan_stops_every_stage(name: str, tmp_path: Path) -> None:
    batch = make_batch()
    batch["hr"][0, 0, 0, 0, 0] = torch.nan
    task = TASKS[name](tiny_model(), known_share=0.0)
    before = [parameter.detach().clone() for parameter in task.parameters()]
    with pytest.raises(UserError, match=r"the loss is nan at step 0; its batch is saved in .*bad_batch_step0_rank0"):
        quick_fit(task, tmp_path, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))
    assert torch.equal(load_file(tmp_path / "bad_batch_step0_rank0.safetensors")["hr"].isnan(), batch["hr"].isnan())


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    """The root of zero has an infinite slope: the loss is as good as ever, the next weights would not be."""

    class WithRoot(DenoiserTask):
        def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
            bias = self.model.denoiser.unet.conv_out.bias
            return super().training_step(batch, index) + (bias - bias.detach()).sum().sqrt()

    task = WithRoot(tiny_model(), Objective, ADAMW)
    with pytest.raises(UserError, match=r"the gradient is (nan|inf) at step 0"):
        quick_fit(task, tmp_path, make_batch())
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())
    assert list(tmp_path.glob("bad_batch_*"))


# A checkpoint of another run.


def same(tmp_path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    OmegaConf.save(OmegaConf.create(before), tmp_path / "config.yaml")
    check_same_run(tmp_path / "config.yaml", OmegaConf.create(now))


TRAINER = {"max_time": None, "gradient_clip_val": 1.0}
CONFIG = {"seed": 0, "model": {"a": [1, 2], "b": {"c": 1}}, "trainer": TRAINER}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"seed": 1}, "seed=0, and now it is 1"),
        ({"model": {"a": [1, 3], "b": {"c": 1}}}, r"model.a=\[1, 2\], and now it is \[1, 3\]"),
        ({"model": {"a": [1, 2], "b": {"c": 1, "d": None}}}, "model.b.d=absent, and now it is None"),
        ({"trainer": {"max_time": None, "gradient_clip_val": 2.0}}, "trainer.gradient_clip_val=1.0"),
        ({"optimizer": {"lr": 1}}, "optimizer.lr=absent"),
        ({"trainer": TRAINER | {"precision": "bf16-true"}}, "trainer.precision=32-true, and now it is bf16-true"),
        ({"trainer": TRAINER | {"overfit_batches": 1}}, "trainer.overfit_batches=0.0, and now it is 1"),
        ({"trainer": TRAINER | {"limit_train_batches": 1}}, "trainer.limit_train_batches=1.0, and now it is 1"),
        ({"trainer": TRAINER | {"max_epochs": 1}}, "trainer.max_epochs=None, and now it is 1"),
        ({"trainer": TRAINER | {"accumulate_grad_batches": 2}}, "trainer.accumulate_grad_batches=1, and now it is 2"),
        ({"trainer": TRAINER | {"sync_batchnorm": True}}, "trainer.sync_batchnorm=False"),
    ],
)
def test_a_key_that_decides_the_weights_must_not_change(tmp_path: Path, now: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"was trained with {message}"):
        same(tmp_path, CONFIG, CONFIG | now)


@pytest.mark.parametrize(
    "now",
    [
        {"trainer": {"max_time": "00:01:00:00", "gradient_clip_val": 1.0, "max_steps": 9, "devices": 4}},
        {"logger": "csv", "publish": "x", "checkpoint_every": 3, "watch": {"every": 1}, "compile": True},
        {"data": {"workers": 4}},
        {"trainer": TRAINER | {"strategy": "ddp", "accelerator": "cpu", "num_nodes": 2, "val_check_interval": 5}},
        {"trainer": TRAINER | {"enable_progress_bar": False, "log_every_n_steps": 3, "profiler": "simple"}},
    ],
)
def test_where_how_long_and_how_fast_may_change(tmp_path: Path, now: dict[str, Any]) -> None:
    same(tmp_path, CONFIG, CONFIG | now)


@pytest.mark.parametrize(
    "default", [{"accumulate_grad_batches": 1}, {"precision": "32-true"}, {"overfit_batches": 0}, {"max_epochs": None}]
)
def test_a_default_that_is_spelled_out_is_no_change(tmp_path: Path, default: dict[str, Any]) -> None:
    same(tmp_path, CONFIG, CONFIG | {"trainer": TRAINER | default})
    same(tmp_path, CONFIG | {"trainer": TRAINER | default}, CONFIG)


def test_the_cache_of_a_shipped_stage_may_move(tmp_path: Path) -> None:
    stage, given = ROOT / "configs" / "train" / "tiny" / "codec.yaml", ["data.root=clips"]
    save_config(load_config(stage, [*given, "data.cache=here"]), tmp_path / "config.yaml")
    check_same_run(tmp_path / "config.yaml", load_config(stage, [*given, "data.cache=elsewhere"]))


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"- 1", b"a: ${b}", b"a: 0x_"])
def test_a_damaged_configuration_is_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    saved = tmp_path / "config.yaml"
    saved.write_bytes(content)
    with pytest.raises(UserError, match=f"^{saved}.*; .*remove it to resume anyway, or give --restart"):
        check_same_run(saved, OmegaConf.create(CONFIG))
    check_same_run(saved, OmegaConf.create(CONFIG), CONFIG)  # the checkpoint knows it itself


def test_no_saved_configuration_is_nothing_to_compare(tmp_path: Path) -> None:
    check_same_run(tmp_path / "config.yaml", OmegaConf.create(CONFIG))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 2, bias=False), "weight 'bias' has no place in this model"),
        (nn.Linear(4, 2), r"weight 'weight' has shape \[2, 3\], in this model \[2, 4\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(other: nn.Module, message: str) -> None:
    state = nn.Linear(3, 2).state_dict()
    check_fits(state, nn.Linear(3, 2), Path("last.ckpt"))
    with pytest.raises(UserError, match=message):
        check_fits(state, other, Path("last.ckpt"))


def test_another_configuration_is_refused_and_nothing_is_lost(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = [*options, f"output={run}"]
    assert call(train, *options, "trainer.max_steps=1") == 0
    kept = {name: (run / name).read_bytes() for name in files_below(run) if (run / name).is_file()}
    assert call(train, *options, "model.codec.decoder_channels=[32,24,16,4]") == 2
    line = last_line(capsys)
    assert "model.codec.decoder_channels=[32, 24, 16, 8], and now it is [32, 24, 16, 4]" in line
    assert {name: (run / name).read_bytes() for name in files_below(run) if (run / name).is_file()} == kept
    assert call(train, *options, "trainer.max_steps=2", "data.workers=1", "data.seed=0") == 0
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["global_step"] == 2


# Precision, compilation, many processes.


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", list(TASKS))
def test_half_precision_trains(name: str, precision: str, tmp_path: Path) -> None:
    task = TASKS[name](tiny_model(), warmup=0)
    before = {key: p.detach().clone() for key, p in task.named_parameters() if p.requires_grad}
    quick_fit(task, tmp_path, make_batch(), precision=precision, accumulate_grad_batches=1)
    after = dict(task.named_parameters())
    assert all(torch.isfinite(p).all() for p in after.values())
    assert any(not torch.equal(value, after[key].to(value)) for key, value in before.items())


_PROCESS = """
import sys
from functools import partial
import pytorch_lightning as pl, torch
from pytorch_lightning.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader
from ldm_video.training.schedule import Pace
from tests.cli_support import tiny_model
from tests.model_stage_support import few_step_task
from tests.task_support import make_batch

class OnCpu(FSDPStrategy):  # Lightning sends FSDP to GPUs alone; torch's runs on a CPU when told to
    def _setup_model(self, model):
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)

strategy = OnCpu(process_group_backend="gloo") if sys.argv[1] == "fsdp" else "ddp"
task = few_step_task(tiny_model(), spatial=Pace(1), warmup=0, pixel_from_step=1, latent_weight=1.0)
task.make_optimizer = partial(torch.optim.SGD, lr=0.1)
trainer = pl.Trainer(
    max_steps=3, accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=0.5, use_distributed_sampler=False,
)
trainer.fit(task, DataLoader([make_batch(seed=seed) for seed in range(3)], batch_size=None))
if trainer.is_global_zero:
    torch.save(task.gathered or task.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
def test_fsdp_is_ddp_in_pieces(tmp_path: Path) -> None:
    """Two processes: late groups, both phases, clipping and the gathered weights, with and without sharding."""
    states = []
    for strategy in ("ddp", "fsdp"):
        path = tmp_path / f"{strategy}.pt"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        (tmp_path / "process.py").write_text(_PROCESS)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [*launch, str(tmp_path / "process.py"), strategy, str(path)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        states.append(torch.load(path, weights_only=True))
    assert states[0].keys() == states[1].keys()
    start = few_step_task(tiny_model()).state_dict()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6, msg=key)
    moved = {key for key, value in states[0].items() if not torch.equal(value, start[key])}
    assert any(".temporal." in key for key in moved) and any(".decoder." in key for key in moved)


@pytest.mark.slow
def test_a_compiled_denoiser_gives_the_same_gradients() -> None:
    """Traced and differentiated by the compiler; generating code takes minutes and is torch's own matter."""
    batch, gradients = make_batch(), []
    for compiled in (False, True):
        model = tiny_model().train()
        if compiled:
            model.denoiser.compile(backend="aot_eager")
        denoiser_task(model).training_step(batch, 0).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert not any("_orig_mod" in key for key in model.state_dict())
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)
