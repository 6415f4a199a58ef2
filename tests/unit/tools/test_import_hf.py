"""The import tool as a user runs it: what it writes, and what it says of input that cannot be imported."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaNextProcessor
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from data_pipeline.conversations.conversation import Turn
from data_pipeline.conversations.rendering import Renderer
from data_pipeline.conversations.tokenizer import load_tokenizer
from megatron_focus.config.loading import load_config
from megatron_focus.conversion.checkpoint_reader import CheckpointTensors, read_model
from tests.unit.conversion import hf_folders
from tests.unit.conversion.hf_folders import OVERRIDES, ROWS
from tests.unit.data_pipeline.conversations.llava_hf_templates import LLAVA_HF_TEMPLATES
from tests.unit.data_pipeline.conversations.own_templates import LLAMA3
from tests.unit.data_pipeline.family_tokenizers import TEXTS
from tests.unit.data_pipeline.sentencepiece_folder import PIECES, write_sentencepiece
from tools.export_hf import main as export_hf
from tools.import_hf import main
from tools.prepare_tokenizer import prepare_tokenizer


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A language model in shards, a tower, a LLaVA-NeXT and a prepared tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    hf_folders.write_language_model(folder / "llm", "llama", max_shard_size="60KB")
    hf_folders.write_tower(folder / "clip")
    hf_folders.write_llava_next(folder / "llava")
    hf_folders.write_tokenizer(folder / "tokenizer")
    return folder


@pytest.fixture
def folders(published, tmp_path):
    """A copy to spoil."""
    shutil.copytree(published, tmp_path / "in")
    return tmp_path / "in"


def parts(folders, *more):
    out = folders.parent / "out"
    sources = ["--llm", str(folders / "llm"), "--vision", str(folders / "clip")]
    return [*sources, "--tokenizer", str(folders / "tokenizer"), "--output", str(out), "--quiet", *OVERRIDES, *more]


def llava(folders, *more):
    out = folders.parent / "out"
    return ["--model", str(folders / "llava"), "--output", str(out), "--quiet", *OVERRIDES, *more]


def refused(arguments, folders, capsys, *words):
    """Exit code, one clear sentence, and nothing left behind."""
    before = {path.name for path in folders.parent.iterdir()}
    capsys.readouterr()
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    for word in words:
        assert str(word) in message
    assert {path.name for path in folders.parent.iterdir()} == before


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        section = config
        *outer, last = key.split("__")
        for name in outer:
            section = section[name]
        section[last] = value
    path.write_text(json.dumps(config))


def test_what_it_writes(folders, capsys):
    base = folders.parent / "base.yaml"
    assert main(parts(folders, "--write-config", str(base), "--dtype", "bf16", "model.vision_sampler.window=2",
                      "model.vision_sampler.scales=[1x1,2x2]")) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert f"vocabulary of {ROWS + 2} (2 new)" in said and "vision_sampler.selector.weight" in said
    out = folders.parent / "out"
    config, full = load_config(base), load_config(out / "iter_0000000" / "config.yaml")
    assert config.model == full.model
    assert config.model.language.num_query_groups == 2 and config.model.language.vocab_size == ROWS + 2
    assert config.model.vision_sampler.window == 2
    assert (config.checkpoint.pretrained, config.training.precision) == (str(out.resolve()), "bf16")
    assert (config.data.tokenizer, config.data.chat_template) == (str((folders / "tokenizer").resolve()), "llama3")
    assert "sections" not in base.read_text() and "optimizer" not in base.read_text()
    tensors = CheckpointTensors(out / "iter_0000000")
    assert {info.dtype for info in tensors.infos().values()} == {torch.bfloat16}
    embedding = tensors.read("embedding.word_embeddings.weight")
    assert embedding.shape == (384, 64) and not embedding[ROWS + 2 :].any() and embedding[ROWS + 1].any()


def test_the_same_seed_draws_the_same(published, tmp_path):
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = ["--model", str(published / "llava"), "--output", str(tmp_path / name), "--quiet", *OVERRIDES]
        assert main([*arguments, f"training.seed={seed}"]) == 0
        drawn.append(CheckpointTensors(tmp_path / name / "iter_0000000").read("vision_sampler.selector.weight"))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    "spelling",
    [
        {"vision_tower.vision_model.": "vision_tower."},
        {
            "vision_tower.vision_model.": "model.vision_tower.",
            "language_model.model.": "model.language_model.",
            "language_model.lm_head.": "lm_head.",
            "multi_modal_projector.": "model.multi_modal_projector.",
            "image_newline": "model.image_newline",
        },
        {"vision_tower.": "model.vision_tower."},
    ],
    ids=["transformers 5 on disk", "its modules", "transformers 4.52's modules"],
)
def test_every_spelling_of_llava_next(folders, published, tmp_path, spelling):
    """What is read is the same as from a folder with the published names."""
    for begin, other in spelling.items():
        hf_folders.rename_tensors(folders / "llava", begin, other)
    imported = []
    for source, out in ((published, "one"), (folders, "two")):
        arguments = ["--model", str(source / "llava"), "--output", str(tmp_path / out), "--quiet", *OVERRIDES]
        assert main(arguments) == 0
        imported.append(read_model(tmp_path / out / "iter_0000000"))
    assert imported[0].keys() == imported[1].keys()
    assert all(torch.equal(tensor, imported[1][name]) for name, tensor in imported[0].items())


def test_existing_output(folders, capsys):
    (folders.parent / "out").mkdir()
    refused(parts(folders), folders, capsys, folders.parent / "out", "exists")
    (folders.parent / "base.yaml").write_text("")
    arguments = parts(folders, "--write-config", str(folders.parent / "base.yaml"))
    refused(arguments, folders, capsys, "base.yaml exists")


def test_truncated_shard(folders, capsys):
    shard = sorted((folders / "llm").glob("*.safetensors"))[3]
    os.truncate(shard, shard.stat().st_size - 100)
    refused(parts(folders), folders, capsys, shard, "truncated")


def test_missing_shard(folders, capsys):
    shard = sorted((folders / "llm").glob("*.safetensors"))[2]
    shard.unlink()
    refused(parts(folders), folders, capsys, "model.safetensors.index.json", shard.name, "missing")


def test_index_names_a_tensor_in_the_wrong_file(folders, capsys):
    path = folders / "llm" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = list(index["weight_map"])
    index["weight_map"]["model.norm.weight"] = index["weight_map"][names[0]]
    path.write_text(json.dumps(index))
    refused(parts(folders), folders, capsys, path, "model.norm.weight")
    path.write_text("{}")
    refused(parts(folders), folders, capsys, path, "weight_map")


def test_missing_and_left_over_tensors_are_listed(folders, capsys):
    path = folders / "clip" / "model.safetensors"
    tensors = load_file(path)
    begin = "vision_model." if any(name.startswith("vision_model.") for name in tensors) else ""
    tensors["strange"] = tensors.pop(f"{begin}pre_layrnorm.bias")
    name = f"{begin}encoder.layers.1.mlp.fc1.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, path)
    tower = "model.vision_tower"
    words = (
        f"missing {tower}.pre_layrnorm.bias",
        "left over",
        "strange",
        f"{tower}.encoder.layers.1.mlp.fc1.weight is",
    )
    refused(parts(folders), folders, capsys, *words)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llm", "AutoModelForCausalLM"), ("clip", "CLIP"), ("llava", "AutoModelForImageTextToText")],
)
def test_pickled_weights(folders, capsys, name, kind):
    """The advice is run: it stores every tensor, the head included."""
    folder = folders / name
    tensors = [len(load_file(path)) for path in folder.glob("*.safetensors")]
    model = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    torch.save(model.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    arguments = llava(folders) if name == "llava" else parts(folders)
    capsys.readouterr()
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "pytorch_model.bin, a pickle" in message and f"import {kind}" in message
    exec(message.split('python -c "')[1].split('"')[0].replace("NEW_FOLDER", str(folders / "new")), {})
    stored = [len(load_file(path)) for path in (folders / "new").glob("*.safetensors")]
    assert sum(stored) == sum(tensors)
    (folder / "pytorch_model.bin").unlink()
    refused(arguments, folders, capsys, "has neither model.safetensors nor")


@pytest.mark.parametrize(
    ("folder", "changes", "words"),
    [
        ("llm", {"model_type": "gpt2"}, ("model_type 'gpt2'", "llama")),
        ("llm", {"hidden_act": "gelu"}, ("config.json", "hidden_act is 'gelu'")),
        ("llm", {"attention_bias": True}, ("attention_bias is True",)),
        ("llm", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, ("is 'linear'",)),
        ("clip", {"model_type": "siglip"}, ("model_type 'siglip'", "CLIP")),
        ("clip", {"hidden_act": "gelu"}, ("hidden_act is 'gelu'",)),
    ],
)  # fmt: skip
def test_wrong_architecture(folders, capsys, folder, changes, words):
    change_config(folders / folder, **changes)
    refused(parts(folders), folders, capsys, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_config__hidden_size": 64}, ("linear_1.weight has shape (64, 32), expected (64, 64)",)),
        ({"vision_config__patch_size": 7}, ("patch_embedding.weight has shape", "position_embedding.weight has")),
        ({"vision_feature_layer": -1}, ("vision_feature_layer is -1",)),
        ({"text_config__num_hidden_layers": 5}, ("missing model.language_model.layers.4.mlp.down_proj.weight",)),
    ],
)
def test_llava_next_whose_parts_do_not_fit(folders, capsys, changes, words):
    change_config(folders / "llava", **changes)
    refused(llava(folders), folders, capsys, *words)


def test_tokenizers_that_do_not_fit(folders, capsys):
    hf_folders.own_tokenizer().save_pretrained(folders / "bare")
    arguments = [str(folders / "bare") if a == str(folders / "tokenizer") else a for a in parts(folders)]
    refused(arguments, folders, capsys, folders / "bare", "tools/prepare_tokenizer.py")

    path = folders / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    tokens = content["model"]["vocab"]
    tokens["a"], tokens["b"] = tokens["b"], tokens["a"]
    path.write_text(json.dumps(content))
    refused(parts(folders), folders, capsys, folders / "tokenizer", "2 tokens differ, the first is 'a'")


def test_a_language_model_with_a_sentencepiece_model_alone(folders, capsys, caplog):
    own = write_sentencepiece(hf_folders.write_language_model(folders / "vicuna", "llama", vocab_size=PIECES))
    (own / "tokenizer.json").unlink()
    other = write_sentencepiece(folders / "mistral", [text[::-1] for text in TEXTS])
    for name, source in (("right", own), ("wrong", other)):
        prepare_tokenizer(source, "vicuna", folders / name)

    def arguments(tokenizer):
        changed = {str(folders / "llm"): str(own), str(folders / "tokenizer"): str(folders / tokenizer)}
        return [changed.get(a, a) for a in parts(folders)]

    refused(arguments("wrong"), folders, capsys, f"is not made from that of {own}", "tokens differ")
    assert main(arguments("right")) == 0
    assert "nothing can say" not in caplog.text
    (own / "tokenizer.model").unlink()
    assert main([*arguments("wrong")[:-1], OVERRIDES[-1], "--output", str(folders.parent / "unchecked")]) == 0
    assert f"{own}: has no tokenizer.json or tokenizer.model, so nothing can say" in caplog.text


def test_a_chat_template_of_the_models_own(folders):
    """It is trained with, and its release is asked in parts."""
    for name in ("llm", "tokenizer"):
        (folders / name / "chat_template.jinja").write_text(LLAMA3)
    base, release = folders.parent / "base.yaml", folders.parent / "release"
    assert main(parts(folders, "--write-config", str(base))) == 0
    assert load_config(base).data.chat_template == "tokenizer"
    out = folders.parent / "out"
    assert export_hf(["--checkpoint", str(out), "--output", str(release), "--quiet"]) == 0

    processor = LlavaNextProcessor.from_pretrained(release)
    picture = {"type": "image", "image": Image.new("RGB", (30, 20))}
    question = {"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    form = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    ids = processor.apply_chat_template([question, answer], **form)["input_ids"][0].tolist()
    image = processor.image_token_id
    ids = [i for i, before in zip(ids, [None, *ids], strict=False) if not i == before == image]
    renderer = Renderer(load_tokenizer(folders / "tokenizer"), "tokenizer")
    turns = [Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")]
    assert ids == renderer.render(turns).tokens.tolist()

    # Trained further, it is the same template: prepared shards stay valid.
    again = folders.parent / "again"
    assert main(["--model", str(release), "--output", str(again), "--quiet", *OVERRIDES]) == 0
    assert Renderer(load_tokenizer(release), "tokenizer").hash == renderer.hash


def test_a_chat_template_that_knows_parts_alone(folders, capsys):
    """As llava-hf's folders have; a named form goes."""
    of_parts = LLAMA3.replace("message['content'] | trim", "message['content'][0]['text']")
    (folders / "llava" / "chat_template.jinja").write_text(of_parts)
    refused(llava(folders), folders, capsys, folders / "llava", "chat template tokenizer", "data.chat_template=NAME")
    assert main(llava(folders, "data.chat_template=llama3")) == 0


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json"])
@pytest.mark.parametrize("form", ["mistral", "vicuna", "llama3"])
def test_a_published_llava_next_is_trained_in_the_form_it_is_asked_in(folders, caplog, form, file):
    template = LLAVA_HF_TEMPLATES[form]
    (folders / "llava" / "chat_template.jinja").unlink()
    (folders / "llava" / file).write_text(
        template if file.endswith("jinja") else json.dumps({"chat_template": template})
    )
    base = folders.parent / "base.yaml"
    assert main(llava(folders, "--write-config", str(base))) == 0
    assert load_config(base).data.chat_template == form
    assert f"{folders / 'llava'}: its chat template writes turns as {form}" in caplog.text
    # None of them writes a system message; Mistral's form has none either.
    assert ("that form, whose system message" in caplog.text) == (form != "mistral")


def test_a_chat_template_that_is_not_recognised(folders, caplog, capsys):
    """The processor's, while the tokenizer has another; or several of the tokenizer's."""
    path = folders / "llava" / "chat_template.json"
    path.write_text(json.dumps({"chat_template": LLAVA_HF_TEMPLATES["vicuna"].replace("upper", "lower")}))
    (folders / "llava" / "chat_template.jinja").write_text(LLAMA3)
    base = folders.parent / "base.yaml"
    assert main(llava(folders, "--write-config", str(base))) == 0
    assert load_config(base).data.chat_template == "tokenizer"
    said = f"{path}: its form is not recognised; data.chat_template=tokenizer trains in the tokenizer's own"
    assert said in caplog.text and "data.chat_template=NAME chooses one of llama3, " in caplog.text
    caplog.clear()
    shutil.rmtree(folders.parent / "out")
    assert main(llava(folders, "data.chat_template=vicuna")) == 0 and "recognised" not in caplog.text

    path.unlink()
    shutil.rmtree(folders.parent / "out")
    base.unlink()
    more = folders / "llava" / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text(LLAMA3)
    refused(llava(folders), folders, capsys, "several chat templates (default, tool_use); data.chat_template=NAME")
    assert main(llava(folders, "data.chat_template=llama3")) == 0


@pytest.mark.parametrize(("precision", "some"), [("bf16", False), ("bf16", True), ("fp32", False)])
def test_half_precision_is_not_rounded_unsaid(folders, caplog, precision, some):
    """Whichever tensors have it; the embedding alone may be of another type."""
    path = folders / "llava" / "model.safetensors"
    tensors = load_file(path)
    half = {name: tensor if some and "embed_tokens" in name else tensor.half() for name, tensor in tensors.items()}
    save_file(half, path, metadata={"format": "pt"})
    assert main(llava(folders, f"training.precision={precision}")) == 0
    said = f"{folders / 'llava'}: weights of it are fp16, which training.precision=bf16 rounds" in caplog.text
    assert said == (precision == "bf16")


@pytest.mark.parametrize(
    "quantisation",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "higgs"},
        {"quant_method": "fp8"},
    ],
    ids=lambda settings: settings["quant_method"],
)
def test_quantised_weights(folders, capsys, quantisation):
    method = quantisation["quant_method"]
    undone = AUTO_QUANTIZER_MAPPING.get(f"{method}_4bit", AUTO_QUANTIZER_MAPPING.get(method))
    # Only some methods can be undone, which is asked of transformers.
    end = "\n" if undone._dequantize is HfQuantizer._dequantize else ", or dequantise them"
    words = (f"quantised ({method})", f"import the unquantised model that they were made from{end}")
    for name, key, kind in (
        ("llm", "quantization_config", "AutoModelForCausalLM"),
        ("llava", "text_config__quantization_config", "AutoModelForImageTextToText"),
    ):
        change_config(folders / name, **{key: quantisation})
        more = (f"transformers.{kind}.from_pretrained(",) if "dequantise" in end else ()
        arguments = llava(folders) if name == "llava" else parts(folders)
        refused(arguments, folders, capsys, folders / name / "config.json", *words, *more)


def test_what_holds_no_model(folders, capsys):
    adapter = {"base_model_name_or_path": "meta-llama/Llama-2-7b"}
    for task, way in (("CAUSAL_LM", "peft.AutoPeftModelForCausalLM.from"), (None, "peft.PeftModel.from_pretrained(")):
        (folders / "llm" / "adapter_config.json").write_text(json.dumps(adapter | {"task_type": task}))
        refused(parts(folders), folders, capsys, folders / "llm", "of meta-llama/Llama-2-7b", way, "merge_and_unload()")
    for name in ("adapter_config.json", "config.json"):
        (folders / "llm" / name).unlink()
    for name, whose in (("model-Q4_K_M.gguf", "llama.cpp's"), ("consolidated.00.pth", "Meta's")):
        (folders / "llm" / name).touch()
        refused(parts(folders), folders, capsys, folders / "llm", f"{whose} own format ({name})", "for transformers")


@pytest.mark.parametrize("option", ["--llm", "--vision", "--model"])
def test_a_name_on_the_hub_is_no_folder(folders, capsys, option):
    arguments = llava(folders) if option == "--model" else parts(folders)
    arguments[arguments.index(option) + 1] = "meta-llama/Meta-Llama-3-8B"
    words = ("no folder meta-llama/Meta-Llama-3-8B", "hf download meta-llama/Meta-Llama-3-8B --local-dir")
    refused(arguments, folders, capsys, *words)
    arguments[arguments.index(option) + 1] = str(folders / "nowhere")
    refused(arguments, folders, capsys, f"no folder {folders / 'nowhere'}\n")
    arguments[arguments.index(option) + 1] = str(folders / "llava" / "config.json")
    refused(arguments, folders, capsys, "config.json is a file")


def test_tokenizer_larger_than_the_vocabulary(folders, capsys):
    hf_folders.write_language_model(folders / "small", "llama", vocab_size=200)
    (folders / "small" / "tokenizer.json").unlink()
    arguments = [str(folders / "small") if a == str(folders / "llm") else a for a in parts(folders)]
    refused(arguments, folders, capsys, f"has {ROWS + 2} tokens", "200 rows", "model.language.vocab_size")
    assert main([*arguments, f"model.language.vocab_size={ROWS + 2}"]) == 0


def test_overrides_that_contradict(folders, capsys):
    refused(parts(folders, "model.language.hidden_size=32"), folders, capsys, "hidden_size=32", "64")
    refused(parts(folders, "model.language.vocab_size=100"), folders, capsys, "cut off")
    refused(parts(folders, "model.text_sampler.layer=9"), folders, capsys, "model.text_sampler.layer=9")
    refused(parts(folders, "model.nothing=9"), folders, capsys, "model.nothing")


def test_command_line(folders, capsys):
    for arguments in (
        ["--output", "out"],
        ["--output", "out", "--llm", "a"],
        ["--output", "o", "--llm", "a", "--vision", "b"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    capsys.readouterr()


def test_libraries_are_quiet(folders):
    """As a user runs it; Megatron and torch have things to say while they are imported and write."""
    run = subprocess.run(
        [sys.executable, "tools/import_hf.py", *parts(folders)], capture_output=True, text=True, timeout=200
    )
    assert (run.returncode, run.stderr) == (0, "")


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from {module} import main
sys.exit(main(sys.argv[1:]))
"""


def limited(module, arguments):
    """Run in a process whose files may not grow beyond 20 kB, as on a full disk."""
    command = [sys.executable, "-c", LIMITED.format(module=module), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_no_space(folders):
    before = {path.name for path in folders.parent.iterdir()}
    run = limited("tools.import_hf", parts(folders))
    assert run.returncode == 2, run.stderr
    assert "error:" in run.stderr and "File too large" in run.stderr and "Traceback" not in run.stderr
    assert {path.name for path in folders.parent.iterdir()} == before

    assert main(parts(folders)) == 0
    release = folders.parent / "release"
    arguments = ["--checkpoint", str(folders.parent / "out"), "--output", str(release)]
    run = limited("tools.export_hf", arguments)
    assert run.returncode == 2, run.stderr
    assert "error:" in run.stderr and "File too large" in run.stderr and "Traceback" not in run.stderr
    assert {path.name for path in folders.parent.iterdir()} == before | {"out"}
    assert export_hf([*arguments, "--quiet"]) == 0
