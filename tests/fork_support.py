"""Processes that begin with the command lines loaded: forked by a server that imported them once."""

from __future__ import annotations

import multiprocessing

forks = multiprocessing.get_context("forkserver")
# The server is one for all tests of this process, and preloads what it was told before its first fork: always the same.
forks.set_forkserver_preload(["infer", "ldm_video.restoration", "train", "tests.cli_support"])
