"""The README of a release."""

from megatron_focus.conversion.model_facts import ModelFacts

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
- focus_llava
- llava_next
---

# FocusLLaVA

LLaVA-NeXT ({family} language model) with two samplers that leave the language model fewer visual tokens to read:

- vision-guided: {vision}
- text-guided: {text}

Trained with Megatron-Focus and exported from it. The code beside the weights needs `torch` and `transformers` only.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "path/to/this/folder"
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto")

content = [{{"type": "image", "path": "image.jpg"}}, {{"type": "text", "text": "What is this?"}}]
messages = [{{"role": "user", "content": content}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device)
output = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

Batches are padded on the left. `model(**inputs, output_selection=True).selection` says for every image which scale each
window got, which cells each token covers, how important the instruction finds it, and whether it was kept.

Limits: `eager` and `sdpa` attention; no static or quantized cache, no assisted generation; images can only be given
with the first tokens of a cache.
"""


def model_card(facts: ModelFacts) -> str:
    """The text of ``README.md``."""
    vision, text = facts.vision_sampler, facts.text_sampler
    vision_line = (
        f"windows of {vision['window']} x {vision['window']} cells at scales {', '.join(vision['scales'])}; "
        f"global view: {vision['global_view']}"
        if vision["enabled"]
        else "off"
    )
    text_line = (
        f"before layer {text['layer']} (of {facts.text.num_layers}) the least important tokens are dropped, "
        f"those that stay hold more than {text['gamma']:.0%} of the importance"
        if text["enabled"]
        else "off"
    )
    return TEMPLATE.format(family=facts.text.family, vision=vision_line, text=text_line)
