"""Data sets behind URLs: aiohttp's static file server for HTTP, moto's server for S3."""

import asyncio
import multiprocessing
import os
import threading
from random import Random

import pytest
from aiohttp import web

from data_pipeline.dataset.storage import Storage

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def far_folder(tmp_path):
    folder = tmp_path / "far"
    (folder / "shards").mkdir(parents=True)
    (folder / "dataset.json").write_bytes(b"{}")
    for name in ("a.tar", "b.tar", "c.tar"):
        (folder / "shards" / name).write_bytes(name.encode() + CONTENT)
    return folder


@pytest.fixture
def http(far_folder):
    """URL of a server, and the paths it was asked for."""
    asked, started, stop = [], threading.Event(), None

    @web.middleware
    async def record(request, handler):
        if request.method == "GET":
            asked.append((request.path, request.headers.get("Range")))
        return await handler(request)

    async def forbidden(_):
        raise web.HTTPForbidden

    async def flaky(_):
        if [path for path, _ in asked].count("/data/flaky") < 3:
            raise web.HTTPServiceUnavailable
        return web.Response(body=b"{}")

    async def whole(_):
        return web.Response(body=CONTENT)

    async def serve():
        nonlocal stop
        stop = asyncio.Event()
        application = web.Application(middlewares=[record])
        application.router.add_get("/data/forbidden", forbidden)
        application.router.add_get("/data/flaky", flaky)
        application.router.add_get("/data/noranges/a.tar", whole)
        application.router.add_static("/data", far_folder)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        http.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/data"
        started.set()
        await stop.wait()
        await runner.cleanup()

    class http:
        url = ""

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(20)
    yield http.url, asked
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)


@pytest.fixture
def s3(far_folder, monkeypatch):
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    filesystem = pytest.importorskip("s3fs").S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
    filesystem.makedirs("bucket", exist_ok=True)
    filesystem.put(str(far_folder), "bucket/data", recursive=True)
    yield "s3://bucket/data"
    server.stop()


def check(storage):
    whole = len(CONTENT) + 5
    assert storage.read("dataset.json") == b"{}"
    assert storage.size("shards/a.tar") == whole
    for _ in range(2):
        assert storage.read_range("shards/b.tar", 3, 7, whole) == (b"b.tar" + CONTENT)[3:10]
    assert storage.read_range("shards/a.tar", whole - 4, 10, whole) == CONTENT[-4:]
    with pytest.raises(FileNotFoundError):
        storage.read("no.json")
    with pytest.raises(FileNotFoundError):
        storage.read_range("shards/no.tar", 0, 1, 1)
    storage.close()


def test_a_folder(far_folder):
    check(Storage(str(far_folder)))
    assert Storage(f"{far_folder}/").place("x") == f"{far_folder}/x"


def test_http(http):
    url, asked = http
    check(Storage(url))
    ranges = [given for path, given in asked if path.endswith("b.tar")]
    assert ranges == ["bytes=3-9", "bytes=3-9"]  # no more than what is needed


def test_http_with_a_cache(http, tmp_path):
    url, asked = http
    check(Storage(url, str(tmp_path / "cache")))
    check(Storage(url, str(tmp_path / "cache")))  # another process of the machine, or the next run
    fetched = [path for path, _ in asked if path.endswith(".tar") and "no.tar" not in path]
    assert fetched == ["/data/shards/b.tar", "/data/shards/a.tar"]  # each once


@pytest.mark.parametrize("cached", [False, True])
def test_s3(s3, tmp_path, cached):
    check(Storage(s3, str(tmp_path / "cache") if cached else None))


def test_a_storage_works_after_a_fork(http, tmp_path):
    url, asked = http
    whole = len(CONTENT) + 5
    for storage in (Storage(url), Storage(url, str(tmp_path / "cache"))):
        assert storage.read_range("shards/c.tar", 0, 5, whole) == b"c.tar"
        with multiprocessing.get_context("fork").Pool(3) as pool:
            results = [pool.apply_async(storage.read_range, (f"shards/{n}.tar", 0, 5, whole)) for n in "abcabcabc"]
            assert [result.get(60) for result in results] == [f"{n}.tar".encode() for n in "abcabcabc"]
    # The cache: c before the fork, then a and b once, though three processes asked.
    cached = sorted(path for path, given in asked if given is None and path.endswith(".tar"))
    assert cached == ["/data/shards/a.tar", "/data/shards/b.tar", "/data/shards/c.tar"]


def test_the_cache_stays_below_its_size(http, tmp_path):
    url, _ = http
    whole = len(CONTENT) + 5
    storage = Storage(url, str(tmp_path / "cache"), cache_bytes=2 * whole)
    for number, name in enumerate("abac"):
        assert storage.read_range(f"shards/{name}.tar", 0, 5, whole) == f"{name}.tar".encode()
        for file in tmp_path.rglob(f"{name}.tar"):
            os.utime(file, (number, number))
    left = sorted(file.name for file in (tmp_path / "cache").rglob("*.tar"))
    assert left == ["a.tar", "c.tar"]  # b was not used for longest
    assert storage.read_range("shards/b.tar", 0, 5, whole) == b"b.tar"  # still open


def test_a_damaged_file_in_the_cache_is_fetched_again(http, tmp_path):
    url, _ = http
    whole = len(CONTENT) + 5
    cache = tmp_path / "cache"
    Storage(url, str(cache)).read_range("shards/a.tar", 0, 5, whole)
    (file,) = cache.rglob("a.tar")
    file.write_bytes(b"half")
    assert Storage(url, str(cache)).read_range("shards/a.tar", 0, 5, whole) == b"a.tar"


def test_a_far_read_is_tried_again(http, monkeypatch):
    url, _ = http
    storage, calls, pauses = Storage(url), [], []
    filesystem, _ = storage._filesystem()
    cat = filesystem.cat_file

    def flaky(*args, **kwargs):
        calls.append(args)
        if len(calls) < 3:
            raise OSError("connection reset")
        return cat(*args, **kwargs)

    monkeypatch.setattr(filesystem, "cat_file", flaky)
    monkeypatch.setattr("data_pipeline.dataset.storage.time.sleep", pauses.append)
    assert storage.read("dataset.json") == b"{}"
    assert pauses == [1, 2]
    calls.clear()

    def broken(*args):
        raise KeyError("an error of the protocol's library")

    monkeypatch.setattr(filesystem, "cat_file", broken)
    with pytest.raises(OSError, match=r"KeyError: .an error of the protocol's library"):
        storage.read("dataset.json")


def test_a_server_that_fails_now_and_then(http, monkeypatch):
    """aiohttp's errors are no OSError, and some cannot be pickled."""
    url, asked = http
    monkeypatch.setattr("data_pipeline.dataset.storage.time.sleep", lambda _: None)
    with pytest.raises(OSError, match=r"403|Forbidden"):
        Storage(url).read("forbidden")
    assert Storage(url).read("flaky") == b"{}"
    assert [path for path, _ in asked].count("/data/flaky") == 3


def test_a_server_without_byte_ranges(http):
    url, _ = http
    with pytest.raises(OSError, match=r"noranges/a\.tar: the server ignores byte ranges; set data\.cache_dir"):
        Storage(url).read_range("noranges/a.tar", 3, 7, 100)


def work_through(url, cache, seed):
    storage, random = Storage(url, cache, cache_bytes=3 * (len(CONTENT) + 5)), Random(seed)
    storage.MAX_OPEN = 2
    for _ in range(60):
        name = random.choice("abc") + str(random.randrange(4))
        assert storage.read_range(f"many/{name}.tar", 0, 2, len(CONTENT) + 5) == name.encode()
    # Held open by this process alone: those that MAX_OPEN allows.
    assert sum(os.fstat(descriptor).st_nlink == 0 for descriptor in storage._open.values()) <= 2


def test_processes_that_share_a_small_cache(http, far_folder, tmp_path):
    """Each drops what others are about to open; nobody fails, and the cache stays small."""
    url, _ = http
    (far_folder / "many").mkdir()
    for name in (letter + str(number) for letter in "abc" for number in range(4)):
        (far_folder / "many" / f"{name}.tar").write_bytes((name.encode() + CONTENT + bytes(5))[: len(CONTENT) + 5])
    with multiprocessing.get_context("fork").Pool(4) as pool:
        jobs = [pool.apply_async(work_through, (url, str(tmp_path / "cache"), seed)) for seed in range(4)]
        assert len([job.get(120) for job in jobs]) == 4
    assert len(list((tmp_path / "cache").rglob("*.tar"))) <= 4
