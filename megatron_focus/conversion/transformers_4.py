"""What a LLaVA-NeXT folder needs so that transformers 4 (tested: 4.57) reads it, and with it vLLM and SGLang."""

import json
from pathlib import Path

from transformers import LlavaNextConfig

_OF_TRANSFORMERS_5 = ("backend", "is_local", "local_files_only", "model_specific_special_tokens")


def llava_next_json(config: LlavaNextConfig) -> str:
    """The text of ``config.json``, with the rotary settings under the names of transformers 4 as well.

    It loads the weights, does not read ``rope_parameters``, and would answer wrongly without a word.
    """
    content = json.loads(config.to_json_string())
    scaling = dict(config.to_dict()["text_config"]["rope_parameters"])
    content["text_config"]["rope_theta"] = scaling.pop("rope_theta")
    content["text_config"]["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def adapt_processor(folder: Path) -> None:
    """Rewrite the files of a processor that transformers 5 saved; both versions then read the same from them.

    Tokenizer: a class that both know, named tokens where both look for them, and the inputs of the model (version 4
    adds ``token_type_ids``, which no language model here takes). Image processor: a file of its own as well, which
    versions before 4.57 need.
    """
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    named = tokenizer["model_specific_special_tokens"]
    kept = {key: value for key, value in tokenizer.items() if key not in (*_OF_TRANSFORMERS_5, *named)}
    kept |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "extra_special_tokens": named,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    path.write_text(_json(kept), encoding="utf-8")
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    (folder / "preprocessor_config.json").write_text(_json(processor["image_processor"]), encoding="utf-8")


def _json(content: dict[str, object]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
