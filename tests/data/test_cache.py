"""Are remote shards fetched once, whole, within the limit, and their index known without them?"""

from __future__ import annotations

import functools
import http.server
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ldm.data import cache as caching
from ldm.data.cache import ShardCache
from ldm.data.examples import Examples
from ldm.data.filters import parse_filter
from ldm.data.loader import make_loader
from ldm.data.order import Order
from ldm.data.reader import Reader
from ldm.data.shards import build_index, expand, read
from ldm.data.transforms import Transform

Write = Callable[..., Path]


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder and remembers what was asked; `broken`: how many answers to cut short."""

    requests: list[str]
    broken: int = 0


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.server.broken > 0:
            self.server.broken -= 1
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with Server(("127.0.0.1", 0), handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture
def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "_FIRST_WAIT_S", 0.0)
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(folder=tmp_path / "cache")


def test_a_url_is_fetched_once_and_read_like_a_file(
    tmp_path: Path, write_shard: Write, server: Server, url: str, cache: ShardCache
) -> None:
    for name in "ab":
        write_shard(tmp_path / "served" / f"{name}.tar", 4, prefix=name)
    shards = expand(f"{url}/{{a,b}}.tar")
    index = build_index(shards, cache=cache)
    local = build_index([str(tmp_path / "served" / f"{name}.tar") for name in "ab"])
    assert index.remote
    assert not local.remote
    assert index.sizes == local.sizes == (4, 4)
    for shard, n in itertools.product(range(2), range(4)):
        assert read(index, shard, n) == read(local, shard, n)
    server.requests.clear()
    assert read(build_index(shards, cache=cache), 1, 2)["txt"] == b"caption b2"
    assert not server.requests


def test_an_index_beside_a_remote_shard_spares_fetching_it(
    tmp_path: Path, write_shard: Write, server: Server, url: str, cache: ShardCache
) -> None:
    shard = write_shard(tmp_path / "served" / "a.tar", 4)
    build_index([str(shard)], rules=parse_filter({"number": ">0"}))  # writes a.tar.index
    index = build_index([f"{url}/a.tar"], rules=parse_filter({"number": ">1"}), cache=cache)
    assert index.sizes == (2,)
    assert server.requests == ["/a.tar.index"]
    assert read(index, 0, 0)["txt"] == b"caption s2"
    assert server.requests[1:] == ["/a.tar"]


def test_an_index_of_another_shard_is_found_out(
    tmp_path: Path, write_shard: Write, url: str, cache: ShardCache
) -> None:
    shard = write_shard(tmp_path / "served" / "a.tar", 4)
    build_index([str(shard)])
    write_shard(shard, 40)
    index = build_index([f"{url}/a.tar"], cache=cache)
    with pytest.raises(OSError, match=r"a\.tar has .* bytes, its index says"):
        read(index, 0, 0)


def test_a_page_instead_of_an_index_is_passed_over(
    tmp_path: Path, write_shard: Write, url: str, cache: ShardCache
) -> None:
    write_shard(tmp_path / "served" / "a.tar", 4)
    (tmp_path / "served" / "a.tar.index").write_text("<html>we know nothing of this</html>")
    assert build_index([f"{url}/a.tar"], cache=cache).sizes == (4,)


def test_what_comes_cut_short_is_fetched_again(
    tmp_path: Path, write_shard: Write, server: Server, url: str, cache: ShardCache
) -> None:
    write_shard(tmp_path / "served" / "a.tar", 4)
    server.broken = 2
    assert (
        cache.local(f"{url}/a.tar").stat().st_size == (tmp_path / "served" / "a.tar").stat().st_size
    )
    server.broken = 100
    with pytest.raises(OSError, match=r"b\.tar could not be fetched, 4 tries: .* bytes came"):
        cache.local(f"{url}/b.tar")
    names = [path.name for path in (tmp_path / "cache" / "shards").iterdir()]
    assert [name for name in names if not name.endswith(".lock")] == [
        cache.local(f"{url}/a.tar").name
    ]


def test_what_is_not_there_is_said_at_once(server: Server, url: str, cache: ShardCache) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.tar could not be fetched: .*404"):
        build_index([f"{url}/nothing.tar"], cache=cache)
    assert server.requests == ["/nothing.tar.index", "/nothing.tar"]


def test_unknown_schemes_say_what_to_install(cache: ShardCache) -> None:
    with pytest.raises(OSError, match="nosuch"):
        cache.local("nosuch://bucket/a.tar")


def test_commands(tmp_path: Path, write_shard: Write, cache: ShardCache) -> None:
    for n in range(2):
        write_shard(tmp_path / f"it's {n}.tar", 3 + n)
    shards = expand(f'pipe:cat "{tmp_path}/it\'s {{0..1}}.tar"')
    index = build_index(shards, cache=cache)
    assert index.sizes == (3, 4)
    assert read(index, 1, 3)["txt"] == b"caption s3"


def test_a_failing_command_is_an_error(tmp_path: Path, cache: ShardCache) -> None:
    with pytest.raises(OSError, match="could not be fetched"):
        cache.local("pipe:printf half; exit 3")
    with pytest.raises(OSError, match="nothing came"):
        cache.local("pipe:true")


def test_the_least_recently_used_shard_goes_first(
    tmp_path: Path, write_shard: Write, url: str
) -> None:
    served = tmp_path / "served"
    for name in "abcd":
        write_shard(served / f"{name}.tar", 4, prefix=name)
    size = (served / "a.tar").stat().st_size
    cache = ShardCache(folder=tmp_path / "cache", limit_bytes=3 * size + 10)
    copies = {name: cache.local(f"{url}/{name}.tar") for name in "abc"}
    for age, name in ((300, "b"), (200, "c"), (100, "a")):
        os.utime(copies[name], (1e9 - age, 1e9 - age))
    copies["d"] = cache.local(f"{url}/d.tar")
    assert [name for name, copy in copies.items() if copy.is_file()] == ["a", "c", "d"]
    cache.local(f"{url}/c.tar")  # used: now a is the oldest
    cache.local(f"{url}/b.tar")
    assert [name for name, copy in copies.items() if copy.is_file()] == ["b", "c", "d"]


def test_a_cache_smaller_than_the_data_gives_the_same_batches(
    tmp_path: Path, write_shard: Write, url: str
) -> None:
    served = tmp_path / "served"
    for n in range(6):
        write_shard(served / f"{n}.tar", 8, prefix=f"{n}-")
    size = (served / "0.tar").stat().st_size

    def keys(shards: list[str], limit: int) -> list[tuple[str, ...]]:
        cache = ShardCache(folder=tmp_path / "cache", limit_bytes=limit)
        index = build_index(shards, cache=cache)
        reader = Reader(
            index=index,
            order=Order(index.sizes, seed=0, group=2, lanes=4),
            examples=Examples(transform=Transform(size=8), seed=0),
        )
        batches = itertools.islice(make_loader(reader, micro_batch=4), 30)
        return [batch.keys for batch in batches]

    local = keys([str(served / f"{n}.tar") for n in range(6)], 0)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert keys([f"{url}/{n}.tar" for n in range(6)], 4 * size) == local
    held = [p for p in (tmp_path / "cache" / "shards").iterdir() if not p.name.startswith(".")]
    assert len(held) <= 4


def test_a_reader_goes_on_with_a_deleted_shard_and_then_fetches_it(
    tmp_path: Path, write_shard: Write, server: Server, url: str, cache: ShardCache
) -> None:
    for name in "ab":
        write_shard(tmp_path / "served" / f"{name}.tar", 4, prefix=name)
    index = build_index([f"{url}/a.tar", f"{url}/b.tar"], cache=cache)
    expected = read(index, 0, 1)
    cache.local(f"{url}/a.tar").unlink()
    assert read(index, 0, 1) == expected  # it is open still
    read(index, 1, 0)  # opens another: the deleted one is let go
    server.requests.clear()
    assert read(index, 0, 1) == expected
    assert server.requests == ["/a.tar"]


def test_two_processes_fetch_a_shard_once(
    tmp_path: Path, write_shard: Write, server: Server, url: str, cache: ShardCache
) -> None:
    write_shard(tmp_path / "served" / "a.tar", 4)
    threads = [
        threading.Thread(target=cache.local, args=(f"{url}/a.tar",), daemon=True) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert server.requests == ["/a.tar"]


def test_the_next_group_is_fetched_ahead(
    tmp_path: Path, write_shard: Write, server: Server, url: str, cache: ShardCache
) -> None:
    for n in range(6):
        write_shard(tmp_path / "served" / f"{n}.tar", 8, prefix=f"{n}-")
    shards = [f"{url}/{n}.tar" for n in range(6)]
    for n in range(6):
        build_index([str(tmp_path / "served" / f"{n}.tar")])  # index files beside
    index = build_index(shards, cache=cache)
    order = Order(index.sizes, seed=0, group=2, lanes=4)
    reader = Reader(
        index=index, order=order, examples=Examples(transform=Transform(size=8), seed=0)
    )
    batches = iter(make_loader(reader, micro_batch=4))
    next(batches)
    wanted = {f"/{order.at(i)[1]}.tar" for i in range(32)}  # this group and the next
    deadline = 200
    while {r for r in server.requests if r.endswith(".tar")} != wanted and deadline:
        threading.Event().wait(0.05)
        deadline -= 1
    asked = [r for r in server.requests if r.endswith(".tar")]
    assert sorted(asked) == sorted(wanted)  # each once, and none of the third group
    del batches


def test_positions_of_a_remote_run_resume(
    tmp_path: Path, write_shard: Write, url: str, cache: ShardCache
) -> None:
    for n in range(4):
        write_shard(tmp_path / "served" / f"{n}.tar", 8, prefix=f"{n}-")
    index = build_index([f"{url}/{n}.tar" for n in range(4)], cache=cache)
    reader = Reader(
        index=index,
        order=Order(index.sizes, seed=0, group=2, lanes=4),
        examples=Examples(transform=Transform(size=8), seed=0),
    )
    straight = list(itertools.islice(make_loader(reader, micro_batch=4), 12))
    resumed = list(itertools.islice(make_loader(reader, micro_batch=4, start=24), 6))
    assert [batch.keys for batch in resumed] == [batch.keys for batch in straight[6:]]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(resumed, straight[6:], strict=True))
