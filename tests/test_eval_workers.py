"""Workers of an evaluation do not outlive it."""

from __future__ import annotations

import subprocess
import sys

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


def test_a_worker_ends_with_the_process_that_was_killed() -> None:
    """The pipe of its output is closed by the last process that has it."""
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, timeout=30, check=False)
    assert done.stdout == b"36\n"
    assert done.returncode == -9
