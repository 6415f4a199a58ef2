"""Names of the same tensors in the folders that Hugging Face models are published in.

The parameter table's names are those of ``LlavaNextForConditionalGeneration``'s modules. A folder's own differ by how
they begin; the first rule whose left side fits decides.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from megatron_focus.conversion.tensor_source import RowSource, TensorInfo

Rules = Sequence[tuple[str, str]]
"""(beginning in the folder, beginning in the table)."""

LANGUAGE_MODEL: Rules = (("model.", "model.language_model."), ("lm_head.", "lm_head."))
"""A causal language model."""

VISION_TOWER: Rules = (("vision_model.", "model.vision_tower."), ("", "model.vision_tower."))
"""A CLIP vision model, or the vision half of a CLIP model."""

LLAVA_NEXT: Rules = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("image_newline", "model.image_newline"),
)
"""LLaVA-NeXT in the layout of ``llava-hf``, which transformers 4.57 and 5 read."""

ANY_LLAVA_NEXT: Rules = (
    *LLAVA_NEXT,
    ("vision_tower.", "model.vision_tower."),
    ("model.vision_tower.vision_model.", "model.vision_tower."),
    ("model.", "model."),
    ("lm_head.", "lm_head."),
)
"""The layouts that transformers has written over time."""

RELEASE: Rules = (("model.", "model."), ("lm_head.", "lm_head."))
"""A release of this project has the table's own names."""

NOT_WEIGHTS = re.compile(
    r".*\.rotary_emb\.inv_freq|.*embeddings\.position_ids"  # buffers that older versions saved
    r"|text_model\..*|(text|visual)_projection\.weight|logit_scale"  # the text half of a CLIP model
)
"""What a folder may hold beside the tensors that are read."""


class RenamedTensors:
    """A source under the table's names; what is not a weight of the model is not listed."""

    def __init__(self, source: RowSource, rules: Rules) -> None:
        self._source = source
        self._names = {_renamed(name, rules): name for name in source.infos() if not NOT_WEIGHTS.fullmatch(name)}

    def infos(self) -> Mapping[str, TensorInfo]:
        """See ``TensorSource``. A name that no rule fits stays as it is, and is reported as left over."""
        infos = self._source.infos()
        return {name: infos[original] for name, original in self._names.items()}

    def read(self, name: str) -> Tensor:
        """See ``TensorSource``."""
        return self._source.read(self._names[name])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """See ``RowSource``."""
        return self._source.read_rows(self._names[name], start, stop)


class JoinedTensors:
    """Several sources as one."""

    def __init__(self, *sources: RowSource) -> None:
        self._sources = {name: source for source in sources for name in source.infos()}
        self._infos = {name: info for source in sources for name, info in source.infos().items()}

    def infos(self) -> Mapping[str, TensorInfo]:
        """See ``TensorSource``."""
        return self._infos

    def read(self, name: str) -> Tensor:
        """See ``TensorSource``."""
        return self._sources[name].read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """See ``RowSource``."""
        return self._sources[name].read_rows(name, start, stop)


def llava_next_name(name: str) -> str:
    """The name in ``llava-hf``'s layout of one of the table's.

    Raises:
        ValueError: LLaVA-NeXT has no such tensor.
    """
    for llava, table in LLAVA_NEXT:
        if name.startswith(table):
            return llava + name.removeprefix(table)
    raise ValueError(f"LLaVA-NeXT has no tensor {name}")


def _renamed(name: str, rules: Rules) -> str:
    for folder, table in rules:
        if name.startswith(folder):
            return table + name.removeprefix(folder)
    return name
