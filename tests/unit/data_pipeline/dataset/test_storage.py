"""Data sets behind URLs: aiohttp's static file server for HTTP, moto's server for S3."""

import asyncio
import multiprocessing
import os
import threading

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

    async def serve():
        nonlocal stop
        stop = asyncio.Event()
        application = web.Application(middlewares=[record])
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
    monkeypatch.setattr(filesystem, "cat_file", lambda *args: (_ for _ in ()).throw(OSError("connection reset")))
    with pytest.raises(OSError, match="connection reset"):
        storage.read("dataset.json")
