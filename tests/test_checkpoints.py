"""Weights are safetensors, strict, and never a pickle."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm_video.core.checkpoints import load_strict, read_weights, save_weights
from ldm_video.core.errors import UserError
from tests.files_support import names


class Net(nn.Module):
    """A matrix, a batch norm's integer counter and floating buffers."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)
        self.norm = nn.BatchNorm1d(2)


def test_weights_round_trip_in_full_and_in_half(tmp_path: Path) -> None:
    net = Net()
    net.norm.num_batches_tracked += 70_001  # more than half precision can count
    save_weights(net, tmp_path / "full.safetensors")
    save_weights(net, tmp_path / "half.safetensors", torch.float16)
    full, half = read_weights(tmp_path / "full.safetensors"), read_weights(tmp_path / "half.safetensors")
    assert full.keys() == half.keys() == net.state_dict().keys()
    for key, value in net.state_dict().items():
        assert torch.equal(full[key], value)
        assert torch.equal(half[key], value.half() if value.is_floating_point() else value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
@pytest.mark.parametrize("umask", ["022", "007", "077"])
def test_weights_may_be_read_by_whom_the_umask_allows(tmp_path: Path, umask: str) -> None:
    """``save_file`` makes files for their owner alone, whatever the umask says."""
    code = (
        "import sys, pathlib, torch; from ldm_video.core.checkpoints import save_weights; "
        "save_weights(torch.nn.Linear(2, 2), pathlib.Path(sys.argv[1])); open(sys.argv[2], 'w')"
    )
    saved, usual = tmp_path / "w.safetensors", tmp_path / "usual"
    subprocess.run(
        ["sh", "-c", f'umask {umask}; exec "$@"', "sh", sys.executable, "-c", code, saved, usual], check=True
    )
    assert saved.stat().st_mode == usual.stat().st_mode


def test_strided_weights_are_saved_as_they_read(tmp_path: Path) -> None:
    net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    save_weights(net, tmp_path / "w.safetensors")
    assert torch.equal(load_file(tmp_path / "w.safetensors")["weight"], net.weight.contiguous())


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_tied_weights_are_saved_under_each_name(tmp_path: Path, dtype: torch.dtype | None) -> None:
    net = nn.ModuleDict({"shared": nn.Embedding(5, 3), "embed": nn.Embedding(5, 3)})
    net["embed"].weight = net["shared"].weight
    save_weights(net, tmp_path / "w.safetensors", dtype)
    state = load_file(tmp_path / "w.safetensors")
    assert state.keys() == {"shared.weight", "embed.weight"}
    assert all(torch.equal(value, net["shared"].weight.to(value.dtype)) for value in state.values())


def test_load_strict_fills_the_module() -> None:
    source, target = Net(), Net()
    load_strict(target, source.state_dict(), "w.safetensors")
    loaded = target.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("linear.bias"), "'linear.bias' missing"),
        (lambda state: state.update(ghost=torch.zeros(1)), "'ghost' unexpected"),
        (lambda state: state.update(Net(5).state_dict()), "'linear.weight' of another shape"),
        (dict.clear, "'linear.bias' and 6 more missing"),
    ],
)
def test_load_strict_names_what_does_not_fit(change: Callable[[dict[str, Tensor]], object], words: str) -> None:
    net = Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = dict(Net().state_dict())
    change(state)
    with pytest.raises(UserError, match=words) as caught:
        load_strict(net, state, "folder/w.safetensors")
    assert "folder/w.safetensors" in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    marker = tmp_path / "opened"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (marker,)

    for suffix in ("bin", "pt", "ckpt", "pth", "pkl"):
        torch.save(Trap(), tmp_path / f"model.{suffix}")
        with pytest.raises(UserError, match=rf"model\.{suffix} is a pickle"):
            read_weights(tmp_path / f"model.{suffix}")
    with pytest.raises(UserError, match="is a pickle"):  # offered in the place of model.safetensors
        read_weights(tmp_path / "model.safetensors")
    (tmp_path / "model.pt").rename(tmp_path / "renamed.safetensors")
    with pytest.raises(UserError, match=r"renamed\.safetensors is not a whole safetensors file"):
        read_weights(tmp_path / "renamed.safetensors")
    assert not marker.exists()


@pytest.mark.parametrize("foreign", [False, True], ids=["published", "foreign"])
def test_the_line_that_converts_a_pickle_opens_lightnings_class_and_no_other(tmp_path: Path, foreign: bool) -> None:
    """Run as it is printed, in a process of its own."""
    marker = tmp_path / "opened"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (marker,)

    state = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    callbacks = {ModelCheckpoint: Trap() if foreign else {"monitor": "val/loss", "best_model_path": "a.ckpt"}}
    torch.save({"epoch": 3, "callbacks": callbacks, "state_dict": state}, tmp_path / "sd v1.ckpt")
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "sd v1.ckpt")
    command = shlex.split(str(caught.value).partition("with: ")[2])
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == foreign, done.stderr
    assert not marker.exists()
    if not foreign:
        written = read_weights(tmp_path / "sd v1.safetensors")
        assert written.keys() == state.keys() and all(torch.equal(written[key], state[key]) for key in state)


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_damaged_file_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(Net(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"w\.safetensors is not a whole safetensors file"):
        read_weights(path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.safetensors do not exist"):
        read_weights(tmp_path / "absent.safetensors")


def test_weights_that_cannot_be_written_are_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / f"{'w' * 240}.safetensors"  # with the temporary name's marks it is longer than names may be
    with pytest.raises(UserError, match="cannot write"):
        save_weights(Net(), path)
    assert names(tmp_path) == []
