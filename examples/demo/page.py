"""The page: a picture and a question on the left, the answer and the table on the right, what was kept below."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from examples.demo.asking import Asker, Samplers, trained_samplers
from examples.demo.conversation import MAX_QUESTION, Request, Shown, respond, sentence
from examples.demo.markup import CSS, TITLE, status_html, table_html
from examples.demo.upload import MAX_BYTES, read_upload

LEAST_GAMMA = 0.05
NO_PICTURE = "The file is no picture that can be read."
WAITING = 8
"""Questions that may wait for the one being answered; more are refused."""


def look() -> dict[str, Any]:
    """Theme and style sheet, for ``launch``; fonts are the system's, so that nothing is fetched."""
    theme = gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "Segoe UI", "Liberation Sans", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return {"theme": theme, "css": CSS}


def build_page(asker: Asker, examples: list[tuple[Path, str]]) -> gr.Blocks:
    """The page for one model; ``examples`` are pictures with a question."""
    stops = _Stops()
    # What was uploaded is deleted after an hour.
    with gr.Blocks(title="FocusLLaVA", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(TITLE, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=380):
                picture = gr.Image(
                    # The file as it came: bytes and pixels are checked before anything is decoded.
                    type="filepath",
                    image_mode=None,
                    label=f"Picture (at most {MAX_BYTES // 2**20} MiB)",
                    height=300,
                    sources=["upload", "clipboard"],
                    buttons=[],
                    elem_id="picture",
                )
                question = gr.Textbox(label="Question", max_length=MAX_QUESTION, autofocus=True, elem_id="question")
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", elem_id="stop")
                if examples:
                    # Pictures alone are shown; a click fills in the question as well.
                    gr.Examples(
                        [[str(path), text] for path, text in examples],
                        [picture, question],
                        label="Examples, with a question",
                        visible_columns=[0],
                        cache_examples=False,
                        api_visibility="private",
                    )
                settings = _sampler_settings(asker)
            with gr.Column(scale=6, min_width=460):
                status = gr.HTML(status_html(Shown()), elem_id="status")
                answer = gr.Textbox(label="Answer", lines=3, interactive=False, elem_id="answer")
                plain = gr.Textbox(label="Uncompressed model", lines=2, interactive=False, elem_id="plain-answer")
                rows = gr.HTML(table_html(()), elem_id="table")
        selection = gr.Image(
            label="What was kept", format="png", interactive=False, buttons=["download", "fullscreen"], elem_id="kept"
        )

        outputs = [status, answer, plain, rows, selection]
        gr.on(
            [ask.click, question.submit],
            _responder(asker, stops),
            [picture, question, *settings],
            outputs,
            show_progress="hidden",
            concurrency_limit=1,
            api_visibility="private",
        )
        # gradio itself refuses a file that Pillow does not know, before it calls the function.
        uploaded = picture.upload(
            _check_picture, picture, [picture, status], show_progress="hidden", api_visibility="private"
        )
        uploaded.failure(lambda: _refused(NO_PICTURE), None, [picture, status], api_visibility="private")
        stop.click(stops.set_for, None, None, queue=False, api_visibility="private")
    page.queue(max_size=WAITING)
    return page


def _sampler_settings(asker: Asker) -> list[Any]:
    """Controls of vision-guided and text-guided sampler, gamma, layer and comparison, in this order."""
    config = asker.release.model.config
    trained = trained_samplers(asker.release)
    last = config.text_config.num_hidden_layers - 1
    has_vision, has_text = config.vision_sampler["enabled"], bool(config.instruction_start_token_ids)
    with gr.Row():
        vision = gr.Checkbox(trained.vision, label="Vision-guided sampler", interactive=has_vision, elem_id="vision")
        text = gr.Checkbox(trained.text, label="Text-guided sampler", interactive=has_text, elem_id="text")
    gamma = gr.Slider(
        min(LEAST_GAMMA, trained.gamma),
        1.0,
        trained.gamma,
        step=0.01,
        label="γ: share of the importance that is kept",
        info=f"1 keeps all; trained with {config.text_sampler['gamma']:g}",
        interactive=trained.text,
        elem_id="gamma",
    )
    layer = gr.Slider(
        0,
        max(1, last),
        trained.text_layer,
        step=1,
        precision=0,
        label="Layer before which tokens are dropped",
        info=f"counted from 0, of {last + 1}; trained with {config.text_sampler['layer']}",
        interactive=trained.text,
        elem_id="layer",
    )
    compare = gr.Checkbox(True, label="Compare with the uncompressed model, afterwards", elem_id="compare")
    text.change(
        lambda on: (gr.update(interactive=on), gr.update(interactive=on)),
        text,
        [gamma, layer],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return [vision, text, gamma, layer, compare]


def _check_picture(path: str) -> list[Any]:
    """Keep a picture that can be read; values for picture and status."""
    try:
        read_upload(Path(path))
    except ValueError as error:
        return _refused(sentence(str(error)))
    return [gr.skip(), status_html(Shown())]


def _refused(error: str) -> list[Any]:
    """Take the picture away and say why."""
    return [None, status_html(Shown(error=error))]


class _Stops:
    """Whether the answer in each open page is to end. gradio's own way, ``cancels``, leaves the word Error behind."""

    def __init__(self) -> None:
        self.events: dict[str | None, Event] = {}

    def begin(self, page: gr.Request) -> Event:
        """A new answer begins."""
        event = self.events[page.session_hash] = Event()
        return event

    def end(self, page: gr.Request) -> None:
        """It has ended."""
        self.events.pop(page.session_hash, None)

    def set_for(self, page: gr.Request) -> None:
        """The button was pressed."""
        if (event := self.events.get(page.session_hash)) is not None:
            event.set()


def _responder(asker: Asker, stops: _Stops) -> Any:
    """The function behind the button: a generator of what is new in the outputs."""

    def answer_question(
        picture: str | None,
        question: str,
        vision: bool,
        text: bool,
        gamma: float,
        layer: int,
        compare: bool,
        page: gr.Request,
    ) -> Iterator[list[Any]]:
        request = Request(Path(picture) if picture else None, question, Samplers(vision, text, gamma, layer), compare)
        before: list[Any] | None = None
        try:
            for shown in respond(asker, request, stops.begin(page)):
                now = [status_html(shown), shown.answer, shown.plain_answer, table_html(shown.rows), shown.selection]
                # Only what changed, so that a picture is sent once.
                yield [
                    value if before is None or (value is not old and value != old) else gr.skip()
                    for value, old in zip(now, before or now, strict=True)
                ]
                before = now
        finally:
            stops.end(page)

    return answer_question
