"""Workers of an evaluation do not outlive it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli_support import ROOT

KILLED = """
import multiprocessing, os, signal, time
from concurrent.futures import ProcessPoolExecutor
from eval.workers import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    print(pool.submit(pow, 6, 2).result(), flush=True)
    pool.submit(time.sleep, 60)
    os.kill(os.getpid(), signal.SIGKILL)
"""

STARTED = """
import multiprocessing, subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from eval.workers import end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    work = "import time; print('at work', flush=True); time.sleep(40)"
    pool.submit(subprocess.run, [sys.executable, "-c", work]).result()
"""


def test_a_worker_ends_with_the_process_that_was_killed() -> None:
    """The pipe of its output is closed by the last process that has it."""
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, timeout=30, check=False)
    assert done.stdout == b"36\n"
    assert done.returncode == -9


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_worker_has_started_ends_too() -> None:
    """As ``infer.py`` does when the benchmark is killed; it too holds the pipe open."""
    with subprocess.Popen([sys.executable, "-c", STARTED], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"at work\n"
        process.kill()
        assert process.communicate(timeout=20) == (b"", None)
