"""Files that are whole or absent, where a folder holds many."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ldm_video.core import files
from ldm_video.core.files import atomic_path


def test_a_folder_is_not_looked_through_at_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many files in it that takes longer than the writing."""
    looks: list[object] = []
    real, seconds = os.listdir, itertools.count()
    monkeypatch.setattr(files.os, "listdir", lambda folder: looks.append(folder) or real(folder))
    monkeypatch.setattr(files, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(files, "sweep", lambda *_: looks.append("swept"))
    for number in range(40):
        with atomic_path(tmp_path / f"{number}.json") as temporary:
            temporary.touch()
    assert 2 <= len(looks) <= 5  # each look is a second by this clock, each write another
    monkeypatch.undo()
    assert len(os.listdir(tmp_path)) == 40
