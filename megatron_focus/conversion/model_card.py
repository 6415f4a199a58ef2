"""The README of a release."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_focus.conversion.model_facts import ModelFacts
from megatron_focus.diagnosis.requirements import project_requirements

PARTS = ("model", "language-model", "vision-tower", "data")
"""What a licence line can be about."""

_USE = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "path/to/this/folder"
processor = AutoProcessor.from_pretrained(folder{remote})
model = AutoModelForImageTextToText.from_pretrained(folder{remote}, dtype="auto")

content = [{{"type": "image", "path": "image.jpg"}}, {{"type": "text", "text": "What is this?"}}]
messages = [{{"role": "user", "content": content}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device)
output = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

Batches are padded on the left.
"""

_FOCUS = """\
`model(**inputs, output_selection=True).selection` says for every image which scale each window got, which cells each
token covers, how important the instruction finds it, and whether it was kept.

`generate(..., return_dict_in_generate=True, output_selection=True)` as well. `model.set_samplers(gamma=0.7,
text_layer=4)` changes how much is kept, without reloading.

Limits: no static or quantized cache, no assisted generation; images can only be given with the first tokens of a cache;
attention by `sdpa`, `eager` or `flash_attention_2`; with a `device_map`, `model.image_newline` cannot be offloaded.
"""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card says beside the model's own facts."""

    training: str | None = None
    """The training's settings as YAML."""
    tokens_kept: Mapping[str, float] = field(default_factory=dict)
    """Place -> share of LLaVA-NeXT's visual tokens left there, 0 to 1."""
    results: Mapping[str, float] = field(default_factory=dict)
    """Benchmark -> score."""
    licenses: Mapping[str, str] = field(default_factory=dict)
    """Part (of ``PARTS``) -> licence."""


def read_results(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """``tokens_kept`` and ``results`` of a JSON file, both optional objects of numbers.

    Raises:
        ValueError: not such a file; names file and key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    allowed = ("tokens_kept", "results")
    if not isinstance(content, dict) or set(content) - set(allowed):
        raise ValueError(f"{path}: expected an object with the keys {' and '.join(allowed)}")
    tokens_kept, results = (_numbers(path, key, content.get(key, {})) for key in allowed)
    for name, share in tokens_kept.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{path}: tokens_kept.{name} is {share}; it is a share from 0 to 1")
    return tokens_kept, results


def _numbers(path: Path, key: str, value: Any) -> dict[str, float]:
    numbers = isinstance(value, dict) and all(type(number) in (int, float) for number in value.values())
    if not numbers:
        raise ValueError(f"{path}: {key} is {value!r}; it must be an object of numbers")
    return dict(value)


def model_card(facts: ModelFacts, card: CardFacts, *, stock: bool) -> str:
    """The text of ``README.md``; ``stock`` for a folder that transformers' own LLaVA-NeXT loads.

    Raises:
        ValueError: the project's requirements, which name the versions that were tested, are not there.
    """
    head = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    if "model" in card.licenses:
        head["license"] = card.licenses["model"]
    tags = ["llava_next"] if stock else ["focus_llava", "llava_next"]
    lines = ["---", *(f"{key}: {json.dumps(v) if ':' in v else v}" for key, v in head.items()), "tags:"]
    lines += [*(f"- {tag}" for tag in tags), "---", "", "# FocusLLaVA", "", _summary(facts, stock), "", "## Use", ""]
    (tested,) = (r.line for r in project_requirements() if r.name == "transformers" and r.extra is None)
    code = (
        " This layout was tested with `transformers==4.57.6` as well."
        if stock
        else " Older versions are refused. The code beside the weights needs nothing else."
    )
    lines += [f"Needs `torch`, `transformers` and `pillow`; tested with `{tested}`.{code}", ""]
    lines += [_USE.format(remote="" if stock else ", trust_remote_code=True")]
    lines += [] if stock else [_FOCUS]
    for title, unit, table in (
        ("Visual tokens kept", "share of LLaVA-NeXT's", {k: f"{v:.1%}" for k, v in card.tokens_kept.items()}),
        ("Results", "score", {name: f"{score:g}" for name, score in card.results.items()}),
        ("Licences", "licence", card.licenses),
    ):
        if table:
            lines += [f"## {title}", "", f"| | {unit} |", "|---|---|"]
            lines += [*(f"| {name} | {value} |" for name, value in table.items()), ""]
    if card.training is not None:
        lines += ["## Training", "", "Settings of Megatron-Focus:", "", "```yaml", card.training.rstrip(), "```", ""]
    return "\n".join(lines)


def _summary(facts: ModelFacts, stock: bool) -> str:
    vision, text = facts.vision_sampler, facts.text_sampler
    made = "Trained with Megatron-Focus and exported from it."
    if stock:
        return f"LLaVA-NeXT with a {facts.text.family} language model. {made}"
    text_line = (
        f"before layer {text['layer']} (of {facts.text.num_layers}) the least important tokens are dropped, "
        f"those that stay hold more than {text['gamma']:.0%} of the importance"
        if text["enabled"]
        else "off"
    )
    return (
        f"LLaVA-NeXT ({facts.text.family} language model) with two samplers that leave the language model fewer visual "
        f"tokens to read:\n\n- vision-guided: {_vision_line(vision)}\n- text-guided: {text_line}\n\n{made}"
    )


def _vision_line(vision: Mapping[str, Any]) -> str:
    if not vision["enabled"]:
        return "off"
    if vision["method"] == "heuristic":
        kept = f"{vision['heuristic_keep']:.0%} of the cells stay, those most similar to the global view (heuristic)"
    else:
        side, scales = vision["window"], ", ".join(vision["scales"])
        kept = f"windows of {side} x {side} cells at scales {scales}"
    return f"{kept}; global view: {vision['global_view']}"
