"""The other side: transformers' own LLaVA-NeXT with the same weights and the same batch, trained in a plain loop."""

import tempfile

import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from data_pipeline.row import PackedRow
from megatron_focus.benchmark.placeholder_tokenizer import placeholder_tokenizer
from megatron_focus.benchmark.presets import LEARNING_RATE, Preset
from megatron_focus.benchmark.workload import image_token_id, transformers_inputs
from megatron_focus.checkpoint.state import Trainable, save_weights
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.conversion.checkpoint_reader import read_model
from megatron_focus.conversion.from_config import model_facts
from megatron_focus.conversion.parameter_table import megatron_to_hf
from megatron_focus.conversion.release_config import release_config


class TransformersSide:
    """``LlavaNextForConditionalGeneration`` with SDPA attention and torch's fused AdamW, the Trainer's default.

    In bfloat16 its optimizer works on the bfloat16 weights themselves and so does less than this project's, which keeps
    float32 master weights.
    """

    def __init__(self, preset: Preset, parts: Trainable, row: PackedRow, device: torch.device) -> None:
        """Build the model with the weights of ``parts``, in their dtype.

        Args:
            preset: the model and the batch.
            parts: this project's model.
            row: the batch, as that model gets it.
            device: where to build it.
        """
        dtype = next(parts.chunks[0].parameters()).dtype
        facts = model_facts(preset.model, placeholder_tokenizer(image_token_id(preset)), "plain")
        config = release_config(facts, dtype)
        with device:
            self.model = LlavaNextForConditionalGeneration(
                LlavaNextConfig(
                    vision_config=config.vision_config,
                    text_config=config.text_config,
                    image_token_index=config.image_token_index,
                    image_grid_pinpoints=config.image_grid_pinpoints,
                    vision_feature_layer=config.vision_feature_layer,
                    vision_feature_select_strategy=config.vision_feature_select_strategy,
                    tie_word_embeddings=config.tie_word_embeddings,
                )
            ).to(dtype)
        self.model.set_attn_implementation("sdpa")
        # The weights take the way of a release: a checkpoint, read whole, renamed by the table.
        with tempfile.TemporaryDirectory() as folder:
            weights = megatron_to_hf(read_model(save_weights(CheckpointStore(folder), parts.chunks, "")), facts)
        self.model.load_state_dict({name: t for name, t in weights.items() if "vision_sampler" not in name})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        inputs = {name: t.to(device) for name, t in transformers_inputs(row, preset, dtype).items()}
        self.labels, self.inputs = inputs.pop("labels"), inputs

    def prefill(self) -> None:
        """Forward pass without gradients, up to the head on the last token of each sample."""
        self.model.eval()
        with torch.no_grad():
            self.model(**self.inputs, use_cache=False, logits_to_keep=1)

    def train(self) -> None:
        """Forward, backward, gradient norm, AdamW."""
        self.model.train()
        self.model(**self.inputs, use_cache=False, labels=self.labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits of every token, samples one after the other [tokens, vocabulary], float32."""
        self.model.eval()
        return self.model(**self.inputs, use_cache=False).logits.flatten(0, 1).float()
