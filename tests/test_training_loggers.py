"""Where a run's series, media, facts and bundle go: W&B offline, TensorBoard, CSV."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
import yaml
from pytorch_lightning.loggers import CSVLogger, WandbLogger

import train
from ldm_video.core.errors import UserError
from ldm_video.core.revision import git_revision
from ldm_video.training.loggers import build_loggers, keep_wandb_id, log_bundle
from tests.cli_support import call, read_pixels, write_tiny_bundle
from tests.train_support import stage_options
from tests.wandb_reader import read_offline_run

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> list[str]:
    """Two steps of the few-step stage, averaged, looked at after each; without the perceptual networks."""
    folder = tmp_path_factory.mktemp("data")
    write_video(folder / "clips" / "a.mp4", frames=6, size=(112, 128))
    stage = stage_options("few_step", folder / "clips", write_tiny_bundle(folder / "bundle"), steps=2)
    stage.remove("watch=null")
    looks = ["watch.every=1", "watch.clips.length=1", "watch.metrics.lpips=null"]
    return [*stage, *looks, "task.decoder_share=0"]  # a step of the decoder alone gives the denoiser a gradient of zero


SERIES = (
    "train/loss", "restored/psnr", "restored/ssim", "speed/clips_per_second", "speed/frames_per_second",
    "memory/peak_gib", "gradient/spatial", "gradient/temporal", "gradient/codec",
)  # fmt: skip
LOOKS = ("step_00000001", "step_00000002")


@pytest.mark.slow
def test_an_offline_wandb_run_holds_series_media_facts_and_bundle(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    output = tmp_path / "run"
    assert call(train, *options, f"output={output}", "name=a run/1", "logger=[csv,wandb]", folder=tmp_path) == 0
    wandb.teardown()  # as at the end of the process: it returns when the last byte is in the file
    (folder,) = (output / "wandb").glob("offline-run-*")
    run = read_offline_run(folder)
    assert run.finished
    for name in SERIES:
        assert len(run.series(name)) == 2, name
        assert all(isinstance(value, float) for value in run.series(name))
    assert all(rate > 0 for rate in run.series("speed/clips_per_second"))

    for kind, suffix in (("strip", ".png"), ("video", ".mp4")):
        files = [files_of(entry, folder) for entry in run.series(f"restored/{kind}")]
        assert [[path.suffix for path in paths] for paths in files] == [[suffix], [suffix]]
        for (path,), look in zip(files, LOOKS, strict=True):
            assert path.read_bytes() == (output / "media" / f"{look}{suffix}").read_bytes()
    assert read_pixels(output / "media" / f"{LOOKS[1]}.mp4").shape == (2, 64, 3 * 64, 3)

    assert run.config["data"]["size"] == 64 and run.config["name"] == "a run/1"
    assert run.config["git"] == git_revision()
    (artifact,) = run.artifacts.values()
    assert (artifact.name, artifact.type) == ("a-run-1", "model")
    inside = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    bundle = output / "bundle"
    assert inside == {str(path.relative_to(bundle)): path for path in bundle.rglob("*") if path.is_file()}


def files_of(entry: dict, folder: Path) -> list[Path]:
    """The files on the disk of an entry of a W&B history that shows pictures or videos."""
    names = entry.get("filenames") or [video["path"] for video in entry["videos"]]
    return [folder / "files" / name for name in names]


def test_csv_has_the_same_series_and_the_files_of_the_media(options: list[str], tmp_path: Path) -> None:
    assert call(train, *options, f"output={tmp_path}") == 0
    log = tmp_path / "log" / "version_0"
    header = (log / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(SERIES) <= set(header)
    assert sorted(path.name for path in (tmp_path / "media").iterdir()) == [
        f"{look}{suffix}" for look in LOOKS for suffix in (".mp4", ".png")
    ]
    facts = yaml.safe_load((log / "hparams.yaml").read_text())
    assert facts["git"] == git_revision() and facts["data"]["size"] == 64


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="needs the tensorboard package")
def test_tensorboard_has_the_series_and_the_strips(options: list[str], tmp_path: Path) -> None:
    assert call(train, *options, f"output={tmp_path}", "logger=tensorboard") == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "version_0")).Reload()
    assert set(SERIES) <= set(events.Tags()["scalars"])
    assert [image.step for image in events.Images("restored/strip")] == [1, 2]


@pytest.mark.skipif(HAS_TENSORBOARD, reason="the package is there")
def test_tensorboard_without_its_package_is_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(train, *options, f"output={tmp_path / 'run'}", "logger=[csv,tensorboard]") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "pip install" in line and "logger=csv" in line
    assert not (tmp_path / "run").exists()


def test_loggers_are_named_one_by_one_or_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [type(logger) for logger in build_loggers("csv", "a", tmp_path)] == [CSVLogger]
    assert [type(logger) for logger in build_loggers(["wandb", "csv"], "a", tmp_path)] == [WandbLogger, CSVLogger]
    with pytest.raises(UserError, match="unknown logger 'tape'"):
        build_loggers(["csv", "tape"], "a", tmp_path)
    with pytest.raises(UserError, match="names none"):
        build_loggers([], "a", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_wandb_other_loggers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import fails, as of a package that is not installed
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    loggers = build_loggers("csv", "a", tmp_path)
    log_bundle(loggers, tmp_path, "a")
    with pytest.raises(UserError, match="pip install wandb; or use logger=csv"):
        build_loggers(["csv", "wandb"], "a", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_is_the_same_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)

    def start(anew: bool = False) -> str | None:
        loggers = build_loggers(["csv", "wandb"], "a", tmp_path, anew)
        keep_wandb_id(loggers, tmp_path)
        return loggers[1].version

    first = start()
    assert first and start() == first
    again = start(anew=True)
    assert again != first and start() == again
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert start() == "mine"


@pytest.mark.parametrize(("mode", "offline"), [(None, True), ("", True), ("online", False), ("disabled", False)])
def test_wandb_mode_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None, offline: bool) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    (logger,) = build_loggers("wandb", "a", tmp_path)
    assert logger._offline is offline


def test_train_keeps_the_run_of_wandb_until_a_restart(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    ids = []
    for more in ([], [], ["--restart"]):
        arguments = [*options, "watch=null", f"output={tmp_path / 'run'}", "logger=wandb", "trainer.max_steps=1"]
        assert call(train, *arguments, *more, folder=tmp_path) == 0
        ids.append((tmp_path / "run" / "wandb_id").read_text())
    assert ids[0] == ids[1] != ids[2]


def test_git_revision_of_the_codes_own_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    package, stranger = tmp_path / "ours", tmp_path / "site-packages"
    for folder in (package, stranger):
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    assert git_revision(package) == {}  # no repository
    git("init", "--quiet")
    git("add", "ours")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert git_revision(package) == {"revision": head, "dirty": False}  # files that are not tracked do not count
    (package / "__init__.py").write_text("changed = True\n")
    assert git_revision(package) == {"revision": head, "dirty": True}
    assert git_revision(stranger) == {}  # installed inside a repository that does not know it
