"""The page in headless Chromium, with a small release behind it."""

import re
import shutil
import socket
from urllib.parse import urlsplit

import pytest
from PIL import Image

from examples.demo import upload
from examples.demo.asking import UNCOMPRESSED, trained_samplers
from megatron_focus.inference.answering import Decoding

pytest.importorskip("gradio", reason="needs gradio: pip install -e '.[demo]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
PATIENCE = 60_000
"""Milliseconds; a busy machine takes seconds for what takes a tenth of one."""


@pytest.fixture(scope="module")
def address(asker, demo_folder, tmp_path_factory):
    from examples.demo.example_questions import example_questions
    from examples.demo.serving import serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("no_proxy", "127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        served = serve(asker, example_questions(demo_folder / "data"), "127.0.0.1", port, share=False, wait=False)
        yield f"http://127.0.0.1:{port}/"
        served.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
        yield running
        running.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address)
    page.wait_for_selector("#ask")
    yield page
    page.close()
    hosts = {urlsplit(url).hostname for url in requested if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}, "the page asks other servers"


def answered(asker, picture, samplers, question="what is this?"):
    stream = asker.ask(Image.open(picture).convert("RGB"), question, samplers)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value.answer


def wait_for_status(page, text):
    page.wait_for_function(f"document.querySelector('#status').innerText.includes({text!r})")


def kept_of(page):
    return int(re.search(r"after the text-guided sampler.*?\t(\d+)", page.inner_text("#table"))[1])


def test_upload_ask_and_move_a_slider(page, asker, picture_file):
    page.set_input_files("#picture input[type=file]", picture_file)
    page.wait_for_selector("#picture img")
    page.fill("#question textarea", "what is this?")
    page.click("#ask")
    wait_for_status(page, "Done")
    expected = answered(asker, picture_file, trained_samplers(asker.release))
    assert page.input_value("#answer textarea").strip() == expected.text
    plain = answered(asker, picture_file, UNCOMPRESSED)
    assert page.input_value("#plain-answer textarea").strip() == plain.text
    assert kept_of(page) == expected.selection[0].num_kept
    page.wait_for_function("(document.querySelector('#kept img') || {}).naturalWidth > 500")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280, "something is wider than the window"

    kept = kept_of(page)
    page.focus("#gamma input[type=range]")
    page.keyboard.press("Home")
    page.uncheck("#compare input")
    page.click("#ask")
    page.wait_for_function(f"!document.querySelector('#table').innerText.includes('\\t{kept}\\t')")
    wait_for_status(page, "Done")
    assert 0 < kept_of(page) < kept
    assert page.input_value("#plain-answer textarea") == ""


def test_an_example_and_an_error(page):
    page.click("#ask")
    wait_for_status(page, "Choose a picture first.")
    page.locator(".gallery button, button.gallery-item").first.click()
    page.wait_for_function("document.querySelector('#question textarea').value == 'what is this?'")
    page.wait_for_selector("#picture img")
    page.press("#question textarea", "Enter")
    wait_for_status(page, "Done")
    assert "New tokens" in page.inner_text("#table")


def test_files_that_are_refused(page, tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "MAX_PIXELS", 100)
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (11, 10)).save(tmp_path / "large.png")
    for name, message in (("text.png", "no picture that can be read."), ("large.png", "11x10 is 110 pixels")):
        page.set_input_files("#picture input[type=file]", tmp_path / name)
        wait_for_status(page, message)
        page.wait_for_selector("#picture img", state="detached")
    page.fill("#question textarea", "what?")
    page.click("#ask")
    wait_for_status(page, "Choose a picture first.")


def test_stop(page, asker, picture_file, monkeypatch):
    monkeypatch.setattr(asker, "decoding", Decoding(3000))
    page.set_input_files("#picture input[type=file]", picture_file)
    page.wait_for_selector("#picture img")
    page.fill("#question textarea", "what is this?")
    page.click("#ask")
    page.wait_for_function("document.querySelector('#answer textarea').value.length > 20")
    page.click("#stop")
    wait_for_status(page, "Stopped.")
    asker.executor.submit(int).result(timeout=60)  # the model's thread is free
    assert asker.release.model.samplers.gamma == 0.6
    page.wait_for_timeout(300)
    assert page.inner_text("#status").strip() == "Stopped."
    assert page.inner_text("#table") == ""
