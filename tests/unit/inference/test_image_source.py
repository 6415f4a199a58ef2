"""Pictures from files and from a server on this machine."""

import errno
import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_focus.inference import image_source
from megatron_focus.inference.image_source import download, open_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.end_headers()
        elif self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(40):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif self.path == "/silent":
            time.sleep(1.5)
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(png())))
            self.end_headers()
            self.wfile.write(png()[:50])
        elif self.path == "/endless":  # says no length
            self.send_response(200)
            self.end_headers()
            for _ in range(64):
                self.wfile.write(bytes(1024))
        elif self.path == "/picture.png":
            self.send_response(200)
            self.send_header("Content-Length", str(len(png())))
            self.end_headers()
            self.wfile.write(png())
        else:
            self.send_error(404)

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # who asked has gone, as some tests want it
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_file(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    picture = open_picture(str(tmp_path / "a.png"))
    assert picture.mode == "RGB" and np.array_equal(np.asarray(picture), PIXELS)
    (tmp_path / "grey.png").write_bytes(png("L"))
    assert open_picture(str(tmp_path / "grey.png")).mode == "RGB"


@pytest.mark.parametrize("path", ["/picture.png", "/moved"])
def test_an_address(server, path):
    assert np.array_equal(np.asarray(open_picture(server + path)), PIXELS)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none", "404"),
        ("/cut", "ended after 50 of"),
        ("/endless", "more than 4000 bytes"),
        ("/picture.png", r"\d+ bytes, more than 4000"),
        ("/slow", "not complete after 0.3 seconds"),
        ("/silent", "timed out|no data for 0.5 seconds"),
        ("/to?file:///etc/hostname", "not allowed"),
        ("/to?ftp://127.0.0.1/a", "unknown url type: ftp"),
    ],
)
def test_downloads_that_fail(server, path, message):
    limit = 4000 if path in ("/endless", "/picture.png") else 2**20
    if path == "/picture.png":
        limit = 1000
        message = message.replace("4000", "1000")
    with pytest.raises(ValueError, match=message) as error:
        download(server + path, limit, 0.5, 0.3 if path == "/slow" else 30)
    assert server + path in str(error.value)


def test_other_failures(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(png()[:200])
    (tmp_path / "whole.png").write_bytes(png())
    cases = [
        ("http://127.0.0.1:1/a.png", "Connection refused"),
        ("http:///a.png", "no host given"),
        ("file:///etc/hostname", "not file://"),
        (str(tmp_path / "none.png"), "no such file"),
        (str(tmp_path), "no such file"),
        (str(tmp_path / "text.png"), "not a readable JPEG"),
        (str(tmp_path / "cut.png"), "cannot be decoded"),
    ]
    for source, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            open_picture(source)
        assert source in str(error.value)
    monkeypatch.setattr(image_source, "MAX_PIXELS", 599)
    with pytest.raises(ValueError, match="30x20 is 600 pixels, more than"):
        open_picture(str(tmp_path / "whole.png"))
    monkeypatch.setattr(image_source, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        open_picture(str(tmp_path / "whole.png"))


def test_storage_that_is_away_is_not_the_pictures_fault(tmp_path, monkeypatch):
    """Such as a network mount without an answer; a name that no file can have is."""
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(ValueError, match="no such file"):
        open_picture(str(tmp_path / ("a" * 300)))
    with pytest.raises(ValueError, match="no such file"):
        open_picture(str(tmp_path / "a.png" / "b.png"))

    def stale(*arguments, **options):
        raise OSError(errno.ESTALE, "Stale file handle")

    for method in ("open", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, stale)
            with pytest.raises(OSError, match=f"^image {tmp_path / 'a.png'}: Stale file handle$"):
                open_picture(str(tmp_path / "a.png"))
