import dataclasses
import json
from html.parser import HTMLParser

import pytest

from data_pipeline.conversations.conversation import Turn
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import train_tokenizer
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.shard_reader import ShardReader
from data_pipeline.inspection.row_forecast import forecast_rows
from data_pipeline.inspection.tables import forecast_line
from data_pipeline.inspection.token_spans import Role, token_spans
from data_pipeline.preparation.prepare import prepare
from data_pipeline.sources.llava_json import LlavaJson
from tests.unit.data_pipeline.family_tokenizers import KINDS, family_tokenizer
from tools.inspect_data import main

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps their texts by class."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class", "")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1], data))

    def of_class(self, name):
        return [text for (_, classes), text in self.texts if name in classes.split()]


@pytest.fixture
def config(tmp_path, small_geometry):
    pinpoints = small_geometry.grid_pinpoints
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{image: {{tile_size: 112, grid_pinpoints: {pinpoints}}}}}\n")
    return file


@pytest.fixture
def page(two_sources, tokenizer_folder, config, tmp_path):
    """Makes the page with further arguments."""

    def make(*arguments):
        out = tmp_path / "out"
        options = ["--output", str(out), "--config", str(config), "--samples", "99", *arguments]
        assert main([str(two_sources), *options]) == 0
        return (out / "index.html").read_text(encoding="utf-8")

    return make


def test_page_with_tokens(page, two_sources, tokenizer_folder, tokenizer, tmp_path):
    html = page("--tokenizer", str(tokenizer_folder))
    parsed = Page(html)
    assert "script" not in parsed.tags
    sources = [attributes["src"] for tag, attributes in parsed.attributes if tag == "img"]
    assert all(source.startswith("data:image/") for source in sources)
    manifest = Manifest.load(two_sources)
    charts = sorted(path.stem for path in (tmp_path / "out").glob("*.png") if path.stem != "contact_sheet")
    assert charts == ["canvases", "image_sizes", "rows", "text_tokens", "tokens", "tokens_by_source"]
    assert len(sources) == manifest.info["images"] + len(charts)
    anchors = {attributes["id"] for tag, attributes in parsed.attributes if tag == "article"}
    links = {attributes["href"] for tag, attributes in parsed.attributes if tag == "a"}
    assert {f"#{anchor}" for anchor in anchors} <= links and len(anchors) == 31
    for link in links - {f"#{anchor}" for anchor in anchors}:
        assert (tmp_path / "out" / link).is_file()

    # The texts of the tokens, by role, are those of the conversations. The legend has one of each, too.
    learnt, instruction, ids = [], [], []
    reader, renderer = ShardReader(manifest), Renderer(tokenizer, "llama3")
    for index in range(len(manifest)):
        encoded = renderer.render(reader.read(index).turns)
        learnt.append(tokenizer.decode(encoded.tokens[encoded.loss].tolist()))
        instruction.append(tokenizer.decode(encoded.tokens[encoded.user_turn >= 0].tolist()))
        ids += encoded.tokens.tolist()

    def shown(role):
        return "".join(parsed.of_class(role)).replace("↵\n", "\n")

    assert shown("learnt") == "learntgreen" + "".join(learnt)
    assert shown("instruction") == "instruction" + "".join(instruction)
    titles = [attributes["title"] for _, attributes in parsed.attributes if "title" in attributes]
    assert [int(i) for title in titles for i in title.removeprefix("id ").split(", ")] == ids
    chips = parsed.of_class("image")[1:]
    assert len(chips) == manifest.info["images"]
    assert all("visual tokens" in chip for chip in chips)


def test_page_by_turns(page, two_sources):
    parsed = Page(page())
    assert "script" not in parsed.tags and parsed.of_class("learnt") == []
    manifest = Manifest.load(two_sources)
    reader = ShardReader(manifest)
    answers = [t.text for i in range(len(manifest)) for t in reader.read(i).turns if t.role == "assistant"]
    assert parsed.of_class("assistant") == answers
    assert any("<script>" in answer for answer in answers)
    assert len(parsed.of_class("image")) == 1 + manifest.info["images"]


def test_text_only_data_set(page, two_sources, tmp_path, tokenizer_folder, tokenizer):
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "A cat."}]
    (tmp_path / "text.json").write_text(json.dumps([{"id": "only", "conversations": turns}]))
    source = LlavaJson(tmp_path / "text.json", tmp_path, "text")
    prepare([source], tmp_path / "text", renderer=Renderer(tokenizer, "llama3"), progress=False)
    out = tmp_path / "text_out"
    assert main([str(tmp_path / "text"), "--output", str(out), "--tokenizer", str(tokenizer_folder)]) == 0
    assert "body text-only" in (out / "index.html").read_text()
    assert sorted(path.name for path in out.glob("*.png")) == [
        "contact_sheet.png", "rows.png", "text_tokens.png", "tokens.png", "tokens_by_source.png",
    ]  # fmt: skip


def test_prints_the_counts(page, capsys):
    page("--kept", "0.5", "--global-batch-size", "7", "--max-sequence-length", "2000")
    output = capsys.readouterr().out
    assert "left out of small: 1 × missing image\nchanged in small: 1 × sample_id\n" in output
    assert "31 samples of 2 sources" in output and "5 steps in an epoch" in output and "rows of 2,000 tokens" in output


@pytest.mark.parametrize("global_view", ["compress", "drop"])
def test_rows_are_planned_as_training_does(two_sources, tmp_path, capsys, monkeypatch, global_view):
    """No cell of a ribbon's tiles shows it, so it has no token where the global view has none."""
    load = Manifest.load

    def with_a_ribbon(folder):
        manifest = load(folder)
        heights, widths = manifest.heights.copy(), manifest.widths.copy()
        heights[0], widths[0] = 7, 900
        return dataclasses.replace(manifest, heights=heights, widths=widths)

    monkeypatch.setattr(Manifest, "load", with_a_ribbon)

    def forecast(_, planner, *__, **___):
        print(forecast_line(forecast_rows(planner, 1.0)))

    monkeypatch.setattr("data_pipeline.inspection.report.write_report", forecast)
    (tmp_path / "run.yaml").write_text(f"model: {{vision_sampler: {{global_view: {global_view}}}}}")
    assert main([str(two_sources), "--config", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert ("or with an image that has no visual token: " in said) == (global_view == "drop")


def test_refuses_another_tokenizer(two_sources, tmp_path, capsys):
    train_tokenizer(["Something else."] * 9, 300, tmp_path / "other")
    assert main([str(two_sources), "--tokenizer", str(tmp_path / "other"), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: tokenizer {tmp_path / 'other'} is not the one that {two_sources} was prepared with"
    )
    assert not (tmp_path / "out").exists()


def test_refuses_what_is_not_prepared(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/dataset.json: no such file")


@pytest.mark.parametrize("arguments", [["--kept", "0"], ["--kept", "1.1"], ["--samples", "0"], ["--decode"]])
def test_refuses_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(["data", *arguments])
    assert error.value.code == 2 and f"argument {arguments[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["llama3", "vicuna", "mistral"])
def test_token_spans(kind, template):
    tokenizer = family_tokenizer(kind)
    turns = [
        Turn("user", "<image> and <image>\nWhat is 日本,  é 🙂 or <|eot_id|>?"),
        Turn("assistant", "A \ufffd cat\n\non 日 a 🙂"),
    ]
    encoded = Renderer(tokenizer, template).render(turns)
    spans = token_spans(encoded, tokenizer)
    ids = [index for span in spans for index in span.ids]
    assert ids == encoded.tokens.tolist()
    assert "".join(span.text for span in spans) == tokenizer.decode(ids)
    assert [span.text for span in spans if span.role is Role.IMAGE] == ["<image>", "<image>"]
    for role, mask in ((Role.LEARNT, encoded.loss), (Role.INSTRUCTION, encoded.user_turn >= 0)):
        assert sum(len(span.ids) for span in spans if span.role is role) == mask.sum()
    assert spans[-1].special and spans[-1].role is Role.LEARNT
    assert not any(span.special for span in spans if span.role is Role.INSTRUCTION)
