"""``train.py`` from the command line to the bundle: the three stages, resume, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import train
from ldm_video import convert
from ldm_video.core.errors import UserError
from ldm_video.models.bundle import load_bundle
from tests.cli_support import ROOT, call, files_below
from tests.test_real_esrgan import published, write_ncnn

STAGES = ROOT / "configs" / "train" / "tiny"
SMALL = {
    "denoiser.config.unet.in_channels": 324,
    "denoiser.config.unet.out_channels": 4,
    "denoiser.config.unet.block_out_channels": "[8,16,16]",
    "denoiser.config.unet.norm_num_groups": 4,
    "denoiser.config.temporal.head_dim": 8,
    "codec.latent_channels": 4,
    "codec.decoder_channels": "[8,8,8,4]",
    "codec.decoder_blocks": "[1,1,1]",
}
NO_JUDGE = "task.pixel_loss.perceptual=null"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> list[str]:
    """Overrides that make any stage small and quick."""
    folder = tmp_path_factory.mktemp("data")
    write_video(folder / "clips" / "a.mp4", frames=6, size=(112, 128))
    data = [f"data.root={folder / 'clips'}", f"data.cache={folder / 'cache'}", "data.size=64", "data.batch=1"]
    steps = ["trainer.max_steps=2", "checkpoint_every=1", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu"]
    return [*data, *steps, "data.frames=2", "logger=csv"]


@pytest.fixture(scope="module")
def codec_options(base: list[str]) -> list[str]:
    return ["--config", str(STAGES / "codec.yaml"), *base, NO_JUDGE, *(f"model.{k}={v}" for k, v in SMALL.items())]


@pytest.fixture(scope="module")
def codec_run(codec_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the codec's stage."""
    output = tmp_path_factory.mktemp("runs") / "codec"
    assert call(train, *codec_options, f"output={output}") == 0
    return output


def weights(run: Path) -> dict[str, Tensor]:
    return load_bundle(run / "bundle").state_dict()


def steps_done(run: Path) -> int:
    # Written by this very test a moment ago.
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["global_step"]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The parts, such as ``codec.decoder``, of which at least one weight differs."""
    assert before.keys() == after.keys()
    names = {key for key in before if not torch.equal(before[key], after[key])}
    return {".".join(name.split(".")[: 2 if name.startswith("codec") else 1]) for name in names}


def test_the_codec_stage_leaves_config_checkpoint_log_and_bundle(codec_run: Path) -> None:
    config = OmegaConf.load(codec_run / "config.yaml")
    assert (config.trainer.max_steps, config.task.seed, config.model.codec.latent_channels) == (2, 0, 4)
    assert steps_done(codec_run) == 2
    assert load_bundle(codec_run / "bundle").codec.latent_channels == 4
    assert any(path.name == "metrics.csv" for path in (codec_run / "log").rglob("*"))
    assert not [name for name in files_below(codec_run) if ".part" in name]


def test_the_stages_follow_one_another(codec_run: Path, base: list[str], tmp_path: Path) -> None:
    denoiser, few_step = tmp_path / "denoiser", tmp_path / "few_step"
    base = [*base, "ema=null"]  # averaging equal weights rounds them
    stage = ["--config", str(STAGES / "denoiser.yaml"), *base, f"output={denoiser}"]
    assert call(train, *stage, f"init_from={codec_run / 'bundle'}") == 0
    assert changed(weights(codec_run), weights(denoiser)) == {"denoiser"}  # the codec is frozen
    stage = ["--config", str(STAGES / "few_step.yaml"), *base, NO_JUDGE, "task.decoder_share=0", f"output={few_step}"]
    assert call(train, *stage, f"init_from={denoiser / 'bundle'}") == 0
    assert changed(weights(denoiser), weights(few_step)) == {"denoiser", "codec.decoder"}
    stage = ["--config", str(STAGES / "polish.yaml"), *base, NO_JUDGE, f"output={tmp_path / 'polish'}"]
    assert call(train, *stage, f"init_from={few_step / 'bundle'}") == 0
    assert changed(weights(few_step), weights(tmp_path / "polish")) == {"codec.decoder"}  # the denoiser is not asked
    published_files, paired = write_ncnn(tmp_path / "net", published(blocks=1)), tmp_path / "paired"
    assert call(convert, "add-restorer", tmp_path / "polish" / "bundle", published_files, paired / "bundle") == 0
    stage = ["--config", str(STAGES / "restorer.yaml"), *base, NO_JUDGE, f"output={tmp_path / 'restorer'}"]
    here = ["trainer.precision=32-true", "data.workers=0", f"init_from={paired / 'bundle'}"]
    assert call(train, *stage, *here) == 0
    assert changed(weights(paired), weights(tmp_path / "restorer")) == {"codec.restorer"}
    assert call(convert, "mix", paired / "bundle", tmp_path / "restorer" / "bundle", tmp_path / "mean" / "bundle") == 0
    last = ["--config", str(STAGES / "texture.yaml"), *base, NO_JUDGE, f"output={tmp_path / 'texture'}", *here]
    last += ["task.pixel_loss.adversary=null", "task.last_blocks=1", "task.critic_lead=0"]  # a net of one block
    assert call(train, *last, f"init_from={tmp_path / 'mean' / 'bundle'}") == 0
    assert changed(weights(tmp_path / "mean"), weights(tmp_path / "texture")) == {"codec.restorer"}
    assert call(train, *stage, *here, f"init_from={few_step / 'bundle'}", "--restart") == 2  # it has no restorer


def test_a_run_continues_where_it_stopped(
    codec_options: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    options = [*codec_options, f"output={tmp_path / 'run'}"]
    assert call(train, *options) == 0
    first = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    with caplog.at_level("INFO", logger="train"):
        assert call(train, *options, "trainer.max_steps=4") == 0
    assert "resuming from" in caplog.text
    assert not [w for w in recwarn if "not resumable" in str(w.message)]  # the clips do go on
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    assert (first["global_step"], last["global_step"]) == (2, 4)
    moments = next(iter(last["optimizer_states"][0]["state"].values()))
    assert int(moments["step"]) == 4  # the optimizer's memory went on too
    # The same clips, holes and noise as without the stop (the warm-up does not depend on where a run ends).
    assert call(train, *codec_options, f"output={tmp_path / 'straight'}", "trainer.max_steps=4") == 0
    assert changed(weights(tmp_path / "run"), weights(tmp_path / "straight")) == set()


def test_a_run_without_a_progress_bar(
    codec_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(train, *codec_options, f"output={tmp_path / 'run'}", "+trainer.enable_progress_bar=false") == 0
    assert "it/s" not in "".join(capsys.readouterr())


def test_a_finished_run_that_is_started_again_gives_the_same_bundle(codec_options: list[str], tmp_path: Path) -> None:
    """With weight averaging on: the average must be what is saved, the second time too."""
    options = [*codec_options, f"output={tmp_path / 'run'}", "ema=0.5"]
    assert call(train, *options) == 0
    before = weights(tmp_path / "run")
    assert call(train, *options) == 0
    assert changed(before, weights(tmp_path / "run")) == set()


def test_restart_begins_anew(codec_options: list[str], codec_run: Path, tmp_path: Path) -> None:
    """With a seed that a run that goes on may not have: what there is decides nothing any more."""
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    copytree(codec_run, run)  # of the default seed, with two steps done
    options = [*codec_options, f"output={run}", "seed=1", "trainer.max_steps=1"]
    assert call(train, *options) == 2
    assert changed(weights(codec_run), weights(run)) == set()
    assert call(train, *options[:2], "--restart", *options[2:]) == 0
    assert steps_done(run) == 1
    assert OmegaConf.load(run / "config.yaml").seed == 1
    assert call(train, *options, f"output={fresh}") == 0
    assert changed(weights(fresh), weights(run)) == set()


def test_a_restart_that_fails_leaves_nothing_to_go_on_from(
    codec_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*codec_options, f"output={tmp_path / 'run'}"]
    assert call(train, *options) == 0

    def fail(*_: object, **__: object) -> None:
        raise UserError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr("pytorch_lightning.Trainer.fit", fail)
        assert call(train, *options, "--restart", "trainer.max_steps=1") == 2
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert call(train, *options, "trainer.max_steps=1") == 0
    assert steps_done(tmp_path / "run") == 1


def test_dry_run_prints_config_and_size_and_writes_nothing(
    codec_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"data.cache={tmp_path / 'cache'}"
    assert call(train, *codec_options, f"output={tmp_path / 'run'}", cache, "--dry-run", "logger=[csv,wandb]") == 0
    printed = capsys.readouterr().out
    assert "max_steps: 2" in printed
    assert "codec: 0." in printed and "M parameters" in printed
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("trainer.max_stepz=3", "unknown key 'trainer.max_stepz'"),
        ("+data.train.clips.max_shrimp=2", "unknown data option 'max_shrimp'"),
        ("+turbo=1", "unknown key 'turbo'"),
        ("data.root=/no/such/folder", "data folder /no/such/folder does not exist"),
        ("data.root=???", "the value of 'data.root'"),
        ("data.size=62", "data has clips of 62x62, not a multiple of 8"),
        ("+data.train.clips.size=62", "not a multiple of 4"),
        ("data.batch=0", "data.batch is 0; give a whole number, 1 or more"),
        ("data.workers=auto", "data.workers is 'auto'; give a whole number, 0 or more"),
        ("checkpoint_every=-1", "checkpoint_every is -1"),
        ("checkpoint_every=true", "checkpoint_every is True"),
        ("+task.warmup=true", "warmup is True; give a whole number, 0 or more"),
        ("data.degrade=null", "these clips have to be degraded"),
        ("data.frames=99", "no usable video"),
        ("data.frames=0", "frames is 0"),
        ("optimizer.lr=-1", "Invalid learning rate"),
        ("optimizer.lr=fast", "the optimizer section cannot be used"),
        ("trainer.max_steps=many", "trainer.max_steps is 'many'"),
        ("trainer.max_time=10:00:00:00", "quote it for the shell and for YAML: \"trainer.max_time='DD:HH:MM:SS'\""),
        ("trainer.max_time=3600", "trainer.max_time is 3600"),
        ("seed=any", "seed is 'any'"),
        ("seed=-1", "seed is -1"),
        ("seed=99999999999", "from 0 to 4294967295"),
        ("name=001", "quote it for the shell and for YAML: \"name='TEXT'\""),
        ("output=2024", "output is 2024, which YAML does not read as text"),
        ("publish=01", "publish is 1"),
        ("data.batch=null", "data.batch is None"),
        ("+trainer.accumulate_grad_batches=null", "trainer.accumulate_grad_batches is None"),
        ("optimizer.betas=[0.9]", "the optimizer section cannot be used"),
        ("ema=2", "ema is 2"),
        ("ema=-1", "ema is -1"),
        ("ema=a", "ema is 'a'"),
        ("+data.frame=8", "unknown key 'data.frame'"),
        ("data.degrade=nonsense", "unknown degradation 'nonsense'"),
        ("init_from=elsewhere", "not both"),
        ("logger=tape", "unknown logger 'tape'"),
        ("logger=5", "unknown logger '5'"),
        ("logger=true", "unknown logger 'True'"),
        ("task.target=ldm_video.training.codec_task.Codex", "unknown model part"),
        ("--turbo", "unrecognized arguments: --turbo"),
        ("data.size=abc", "data.size is 'abc'; give a whole number, 1 or more"),
        ("data.size=[64,96,3]", "data.size is [64, 96, 3]; give one side or [height, width]"),
        ("data.size=30", "not a multiple of"),
        ("data.frames=2.5", "data.frames is 2.5"),
        ("data.size=36", "data has clips of 36x36, not a multiple of 8 as the model's codec needs"),
        ("data.size=[64,44]", "data has clips of 64x44, not a multiple of 8"),
        ("+data.train.clips.size=52", "data.train has clips of 52x52, not a multiple of 8"),
        ("+watch.clips.size=52", "watch has clips of 52x52, not a multiple of 8"),
        ("task.known_share=2", "known_share is 2; give a finite number, from 0 to 1"),
        ("task.known_share=abc", "known_share is 'abc'"),
        ("task.seed=abc", "seed is 'abc'"),
        ("task.pixel_loss.perceptual_weight=-1", "perceptual_weight is -1; give a finite number, 0 or more"),
        ("task.pixel_loss.perceptual_weight=abc", "perceptual_weight is 'abc'"),
        ("+task.pixel_loss.shift=-1", "shift is -1"),
        ("+task.latent_noise=-1", "latent_noise is -1"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val is -1; give a finite number, 0 or more"),
        ("trainer.log_every_n_steps=-5", "trainer.log_every_n_steps is -5; give a whole number, 0 or more"),
        ("trainer.log_every_n_steps=abc", "trainer.log_every_n_steps is 'abc'"),
        ("compile=maybe", "compile is 'maybe'; give true or false"),
        ("gradient_checkpointing=abc", "gradient_checkpointing is 'abc'; give true or false"),
        ("data.workers=1.5", "data.workers is 1.5; give a whole number, 0 or more"),
        ("init_from=123", "init_from is 123, which YAML does not read as text"),
        ("trainer=3", "'trainer' is 3; it must be a section of keys"),
        ("trainer=null", "'trainer' is None; it must be a section of keys"),
        ("task=3", "'task' is 3; it must be a section of keys"),
        ("data.degrade=sdd", "unknown degradation 'sdd'"),
        ("+trainer.acumulate=4", "does not take 'acumulate'"),
        ("trainer.precision=foo", "cannot build pytorch_lightning.Trainer"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    codec_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    """Of the run and of its ``--dry-run``, which has no cache yet."""
    for more in ([], [f"data.cache={tmp_path / 'cache'}", "--dry-run"]):
        assert call(train, *codec_options, f"output={tmp_path / 'run'}", *more, option) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and message in line
        assert files_below(tmp_path) == set()


def test_clips_too_small_for_the_perceptual_network(
    codec_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After its shift of up to 8 pixels."""
    judge = "task.pixel_loss.perceptual={target: eval.metrics.backbones.lpips_network, net: alex, shared: false}"
    assert call(train, *codec_options, judge, f"output={tmp_path / 'run'}", "data.size=32") == 2
    assert "clips of 32x32 cannot be judged" in capsys.readouterr().err.splitlines()[-1]
    assert files_below(tmp_path) == set()


def test_a_dry_run_refuses_to_go_on_from_another_run(
    codec_options: list[str], codec_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(codec_run)
    assert call(train, *codec_options, f"output={codec_run}", "seed=1", "--dry-run") == 2
    assert "seed=0, and now it is 1" in capsys.readouterr().err
    assert files_below(codec_run) == before


@pytest.mark.parametrize("key", ["ema", "watch"])
def test_what_fsdp_cannot_have(key: str) -> None:
    config = OmegaConf.create({"ema": None, "watch": None, key: 0.5})
    with pytest.raises(UserError, match=f"set {key}=null"):
        train.check_fsdp(config)


def test_fsdp_has_no_adversary() -> None:
    config = OmegaConf.create({"ema": None, "watch": None, "task": {"pixel_loss": {"adversary": {"weight": 0.1}}}})
    with pytest.raises(UserError, match=r"set task\.pixel_loss\.adversary=null"):
        train.check_fsdp(config)
    config.task.pixel_loss.adversary = None
    train.check_fsdp(config)


def test_a_warm_up_that_cannot_be(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", str(ROOT / "configs" / "debug" / "overfit.yaml"), *base, f"output={tmp_path / 'run'}"]
    assert call(train, *options, "task.warmup=long") == 2
    assert "warmup is 'long'; give a whole number" in capsys.readouterr().err


def test_a_stage_without_its_predecessor(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", str(STAGES / "denoiser.yaml"), *base, f"output={tmp_path / 'run'}"]
    assert call(train, *options, f"init_from={tmp_path / 'none'}") == 2
    assert "is not a model bundle" in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_without_a_key_writes_a_run_to_the_disk(
    codec_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call(train, *codec_options, f"output={tmp_path / 'run'}", "logger=wandb", folder=tmp_path) == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
