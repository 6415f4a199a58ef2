"""The model card: front matter that parses, and the sections that were asked for."""

import json
import re
from pathlib import Path

import pytest
import yaml

from megatron_focus.config.schema import RunConfig
from megatron_focus.conversion.model_card import CardFacts, model_card, read_results
from tests.unit.conversion.tiny_facts import tiny_facts
from tools.export_hf import training_settings


def test_sections():
    card = CardFacts(
        training=training_settings(RunConfig()),
        tokens_kept={"into the language model": 0.4249},
        results={"MMBench": 67.1},
        licenses={"model": "llama3", "vision-tower": "MIT"},
    )
    text = model_card(tiny_facts(), card, stock=False)
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["library_name"], head["license"]) == ("transformers", "llama3")
    for line in ("| into the language model | 42.5% |", "| MMBench | 67.1 |", "| vision-tower | MIT |"):
        assert line in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["optimizer"]["lr"] == 1e-5
    # Where a run's files lie is nobody's business.
    assert not {"path", "tokenizer", "cache_dir"} & settings["data"].keys() and "checkpoint" not in settings


def test_nothing_is_said_that_was_not_given():
    text = model_card(tiny_facts(), CardFacts(), stock=False)
    # Else transformers asks before it loads the processor, too.
    assert text.count("from_pretrained(folder, trust_remote_code=True") == 2
    assert "trust_remote_code" not in model_card(tiny_facts(sampler=False), CardFacts(), stock=True)
    assert not any(title in text for title in ("## Results", "## Licences", "## Training", "## Visual tokens"))


def test_versions_of_transformers():
    source = (Path(__file__).parents[3] / "setup.py").read_text()
    (tested,) = re.findall(r'"(transformers[<>=][^"]*)"', source)
    for stock in (False, True):
        text = model_card(tiny_facts(), CardFacts(), stock=stock)
        assert f"tested with `{tested}`" in text
        assert ("Older versions are refused" in text) == (not stock)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "expected an object"),
        ('{"tokens": {}}', "tokens_kept and results"),
        ('{"results": {"a": "b"}}', "results is {'a': 'b'}"),
        ('{"tokens_kept": {"a": 42}}', "tokens_kept.a is 42"),
        ("{", "not a JSON file"),
    ],
)
def test_results_that_cannot_be_read(tmp_path, content, words):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        read_results(path)
    assert str(path) in str(error.value)


def test_results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": {"a": 1}}))
    assert read_results(path) == ({}, {"a": 1})
