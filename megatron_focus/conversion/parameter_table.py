"""The one table that names every tensor on both sides, and its two readings.

Megatron names are those of mcore's local spec, tensors whole (no tensor-parallel shards, no stacked layers); Hugging
Face names are the module names of ``LlavaNextForConditionalGeneration`` plus ``model.vision_sampler``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_focus.conversion.model_facts import ModelFacts, TextFacts, VisionFacts
from megatron_focus.conversion.tensor_layouts import (
    GateUp,
    GroupedQKV,
    Layout,
    PaddedVocabulary,
    Same,
    to_megatron,
)
from megatron_focus.conversion.tensor_source import Shape, TensorInfo, check_tensors

SAME = Same()


@dataclass(frozen=True)
class Entry:
    """One Megatron tensor and the Hugging Face tensors it corresponds to."""

    megatron: str
    shape: Shape
    """Shape of the Megatron tensor."""
    hf: tuple[str, ...]
    layout: Layout = SAME

    def of_layer(self, layer: int) -> "Entry":
        """The entry with ``{i}`` replaced by a layer's number."""
        names = tuple(name.replace("{i}", str(layer)) for name in self.hf)
        return Entry(self.megatron.replace("{i}", str(layer)), self.shape, names, self.layout)


def _linear(megatron: str, hf: str, rows: int, columns: int) -> Iterator[Entry]:
    """Weight and bias of a linear layer."""
    yield Entry(f"{megatron}.weight", (rows, columns), (f"{hf}.weight",))
    yield Entry(f"{megatron}.bias", (rows,), (f"{hf}.bias",))


def _norm(megatron: str, hf: str, size: int) -> Iterator[Entry]:
    """Weight and bias of a layer norm."""
    yield Entry(f"{megatron}.weight", (size,), (f"{hf}.weight",))
    yield Entry(f"{megatron}.bias", (size,), (f"{hf}.bias",))


def _qkv(kind: str, hf: str, shape: Shape, layout: GroupedQKV, megatron: str) -> Entry:
    """The joint projection's ``weight`` or ``bias``."""
    return Entry(f"{megatron}.{kind}", shape, tuple(f"{hf}.{p}_proj.{kind}" for p in "qkv"), layout)


def _vision_layer(v: VisionFacts) -> Iterator[Entry]:
    """One layer of the vision tower."""
    megatron, hf = "vision_tower.decoder.layers.{i}", "model.vision_tower.encoder.layers.{i}"
    h, f = v.hidden_size, v.ffn_hidden_size
    layout = GroupedQKV(v.num_attention_heads, v.num_attention_heads, h // v.num_attention_heads)
    yield from _norm(f"{megatron}.input_layernorm", f"{hf}.layer_norm1", h)
    for kind, shape in (("weight", (3 * h, h)), ("bias", (3 * h,))):
        yield _qkv(kind, f"{hf}.self_attn", shape, layout, f"{megatron}.self_attention.linear_qkv")
    yield from _linear(f"{megatron}.self_attention.linear_proj", f"{hf}.self_attn.out_proj", h, h)
    yield from _norm(f"{megatron}.pre_mlp_layernorm", f"{hf}.layer_norm2", h)
    yield from _linear(f"{megatron}.mlp.linear_fc1", f"{hf}.mlp.fc1", f, h)
    yield from _linear(f"{megatron}.mlp.linear_fc2", f"{hf}.mlp.fc2", h, f)


def _vision_ends(facts: ModelFacts) -> Iterator[Entry]:
    """What stands before the tower's layers."""
    hf, h, patch_size = "model.vision_tower", facts.vision.hidden_size, facts.image.patch_size
    class_token = Same(hf_shape=(h,))
    yield Entry("vision_tower.class_token", (1, 1, h), (f"{hf}.embeddings.class_embedding",), class_token)
    patch = (h, 3, patch_size, patch_size)
    yield Entry("vision_tower.conv1.weight", patch, (f"{hf}.embeddings.patch_embedding.weight",))
    positions = (facts.cells + 1, h)  # with the class token
    yield Entry("vision_tower.position_embeddings.weight", positions, (f"{hf}.embeddings.position_embedding.weight",))
    # "pre_layrnorm" is how transformers spells it.
    yield from _norm("vision_tower.ln_pre", f"{hf}.pre_layrnorm", h)


def _text_layer(t: TextFacts) -> Iterator[Entry]:
    """One layer of the language model."""
    megatron, hf = "decoder.layers.{i}", "model.language_model.layers.{i}"
    h, f, width = t.hidden_size, t.ffn_hidden_size, t.num_attention_heads * t.head_dim
    rows = width + 2 * t.num_query_groups * t.head_dim
    layout = GroupedQKV(t.num_attention_heads, t.num_query_groups, t.head_dim)
    yield Entry(f"{megatron}.input_layernorm.weight", (h,), (f"{hf}.input_layernorm.weight",))
    yield _qkv("weight", f"{hf}.self_attn", (rows, h), layout, f"{megatron}.self_attention.linear_qkv")
    if t.qkv_bias:
        yield _qkv("bias", f"{hf}.self_attn", (rows,), layout, f"{megatron}.self_attention.linear_qkv")
    yield Entry(f"{megatron}.self_attention.linear_proj.weight", (h, width), (f"{hf}.self_attn.o_proj.weight",))
    yield Entry(f"{megatron}.pre_mlp_layernorm.weight", (h,), (f"{hf}.post_attention_layernorm.weight",))
    gate_up = (f"{hf}.mlp.gate_proj.weight", f"{hf}.mlp.up_proj.weight")
    yield Entry(f"{megatron}.mlp.linear_fc1.weight", (2 * f, h), gate_up, GateUp())
    yield Entry(f"{megatron}.mlp.linear_fc2.weight", (h, f), (f"{hf}.mlp.down_proj.weight",))


def _text_ends(t: TextFacts, source_rows: int | None) -> Iterator[Entry]:
    """Embedding, final norm and output layer."""
    rows = (t.padded_vocab_size, t.hidden_size)
    vocabulary = PaddedVocabulary(t.vocab_size, t.padded_vocab_size, source_rows)
    embedding = "model.language_model.embed_tokens.weight"
    yield Entry("embedding.word_embeddings.weight", rows, (embedding,), vocabulary)
    yield Entry("decoder.final_layernorm.weight", (t.hidden_size,), ("model.language_model.norm.weight",))
    if not t.tie_embeddings:
        yield Entry("output_layer.weight", rows, ("lm_head.weight",), vocabulary)


def _between(facts: ModelFacts) -> Iterator[Entry]:
    """Projector, newline and vision sampler."""
    hidden, projector = facts.text.hidden_size, "model.multi_modal_projector"
    yield from _linear("projector.encoder.linear_fc1", f"{projector}.linear_1", hidden, facts.vision.hidden_size)
    yield from _linear("projector.encoder.linear_fc2", f"{projector}.linear_2", hidden, hidden)
    yield Entry("image_newline", (hidden,), ("model.image_newline",))
    if facts.has_selector:
        scales = len(facts.vision_sampler["scales"])
        yield from _linear("vision_sampler.selector", "model.vision_sampler.selector", scales, facts.cells)


def parameter_table(facts: ModelFacts, source_vocabulary: int | None = None) -> list[Entry]:
    """Every tensor of the model.

    Args:
        facts: the model's dimensions.
        source_vocabulary: rows of the Hugging Face embedding that is read, where it has yet to grow to the model's.

    An output layer tied to the embedding and a vision sampler that is off, or heuristic, have no tensor of their own,
    so no entry.
    """
    entries = [*_vision_ends(facts)]
    entries += [e.of_layer(i) for i in range(facts.vision.num_layers) for e in _vision_layer(facts.vision)]
    entries += [*_between(facts), *_text_ends(facts.text, source_vocabulary)]
    entries += [e.of_layer(i) for i in range(facts.text.num_layers) for e in _text_layer(facts.text)]
    return entries


def unused_vision_tensors(vision: VisionFacts) -> dict[str, Tensor]:
    """Tensors transformers expects in the tower and LLaVA never reads: the last layer and the norm after it.

    LLaVA reads the output of the last layer but one (``vision_feature_layer`` -2), so Megatron does not build the last.
    The release keeps LLaVA's layout, which every tool that reads such checkpoints knows, and fills the tensors in. Zero
    weights make the layer the identity; norms are ones and zeros.
    """
    filler: dict[str, Tensor] = {}
    for template in _vision_layer(vision):
        entry = template.of_layer(vision.num_layers)
        for name, shape in zip(entry.hf, entry.layout.hf_shapes(entry.shape), strict=True):
            is_scale = ".layer_norm" in name and name.endswith(".weight")
            filler[name] = torch.ones(shape) if is_scale else torch.zeros(shape)
    filler["model.vision_tower.post_layernorm.weight"] = torch.ones(vision.hidden_size)
    filler["model.vision_tower.post_layernorm.bias"] = torch.zeros(vision.hidden_size)
    return filler


def hf_shapes(table: list[Entry]) -> dict[str, Shape]:
    """Name -> shape of the Hugging Face tensors of a table."""
    return {name: shape for e in table for name, shape in zip(e.hf, e.layout.hf_shapes(e.shape), strict=True)}


def ignored_hf_names(facts: ModelFacts) -> set[str]:
    """Hugging Face tensors that a model may bring and the conversion does not read."""
    repeated = {"lm_head.weight"} if facts.text.tie_embeddings else set()  # state_dict() repeats a tied tensor
    return set(unused_vision_tensors(facts.vision)) | repeated


def _infos(state: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def megatron_to_hf(state: Mapping[str, Tensor], facts: ModelFacts) -> dict[str, Tensor]:
    """Rename and rearrange a whole model, adding the tensors only transformers has.

    Args:
        state: Megatron names to whole tensors.
        facts: the model's dimensions.

    Raises:
        ValueError: listing every missing, left-over or misshapen tensor.
    """
    table = parameter_table(facts)
    check_tensors("Megatron", _infos(state), {e.megatron: e.shape for e in table}, set())
    converted: dict[str, Tensor] = {}
    for entry in table:
        converted.update(zip(entry.hf, entry.layout.to_hf(state[entry.megatron]), strict=True))
    dtype = next(iter(converted.values())).dtype
    converted.update({name: tensor.to(dtype) for name, tensor in unused_vision_tensors(facts.vision).items()})
    return converted


def hf_to_megatron(state: Mapping[str, Tensor], facts: ModelFacts) -> dict[str, Tensor]:
    """Rename and rearrange a whole model the other way, leaving out the tensors LLaVA never reads.

    Args:
        state: Hugging Face names (of ``state_dict()``) to tensors.
        facts: the model's dimensions.

    Raises:
        ValueError: listing every missing, left-over or misshapen tensor.
    """
    table = parameter_table(facts)
    check_tensors("Hugging Face", _infos(state), hf_shapes(table), ignored_hf_names(facts))
    return {e.megatron: to_megatron(e.layout, e.shape, [state[name] for name in e.hf]) for e in table}
