"""Shards from elsewhere: fetched once, never for a mere look, and kept in a cache that needs no locks."""

from __future__ import annotations

import errno
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data.cache import headers_only
from data.shards import local_copy
from ldm_video.core.errors import UserError
from tests.data_support import same
from tests.shards_support import dataset, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of three, three and one clips; every second clip has a caption."""
    return write_shards(tmp_path_factory)


class Quiet(http.server.SimpleHTTPRequestHandler):
    requested: list[str]

    def do_GET(self) -> None:
        self.requested.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[tuple[str, list[str]]]:
    requested: list[str] = []
    handler = functools.partial(type("Handler", (Quiet,), {"requested": requested}), directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", requested
        running.shutdown()
        thread.join()


def test_remote_shards_are_fetched_once(server: tuple[str, list[str]], shards: Path, tmp_path: Path) -> None:
    url, requested = server
    remote = dataset(url + "/clips-{000..001}.tar", tmp_path)
    local = dataset(f"{shards}/clips-{{000..001}}.tar", tmp_path)
    assert all(same(remote[i], local[i]) for i in range(6))
    assert sorted(requested) == ["/clips-000.tar", "/clips-001.tar"]
    dataset(url + "/clips-{000..001}.tar", tmp_path)
    assert len(requested) == 2
    with pytest.raises(UserError, match=r"clips-009\.tar"):
        dataset(url + "/clips-009.tar", tmp_path)
    assert not list((tmp_path / "cache" / "shards").glob("*clips-009.tar"))


def test_a_look_fetches_and_writes_nothing(server: tuple[str, list[str]], shards: Path, tmp_path: Path) -> None:
    address, asked = server
    folder = tmp_path / "cache"
    with headers_only():
        local = dataset(shards, folder)
        dataset(f"{address}/clips-{{000..001}}.tar", folder)
        with pytest.raises(UserError, match="does not exist"):
            dataset(tmp_path / "none.tar", folder)
    assert 0 < len(local.samples) <= len(dataset(shards, tmp_path / "other").samples)
    assert asked == [] and not folder.exists()


def test_copies_are_made_without_locks_and_read_without_writing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some shared disks have no locks; and who only reads a cache may not be allowed to make a lock in it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    url = "memory://of-locks.tar"
    fsspec.filesystem("memory").pipe("/of-locks.tar", (shards / "clips-000.tar").read_bytes())
    copy = local_copy(url, tmp_path / "new" / "cache")
    assert copy.read_bytes() == (shards / "clips-000.tar").read_bytes()
    monkeypatch.setattr("data.shards.first_to_make", refuse)
    assert local_copy(url, tmp_path / "new" / "cache") == copy
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the cache of shards .*file/cache cannot be used"):
        local_copy(url, tmp_path / "file" / "cache")
