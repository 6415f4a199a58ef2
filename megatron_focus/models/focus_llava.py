"""FocusLLaVA: vision tower -> projector -> vision-guided sampler -> fusion -> shrinking decoder -> head.

One instance is one pipeline stage's (or model chunk's) part of the model: images, text and fusion live on the first,
the head on the last. The decoder's layers lie on all of them.

Shapes: N text tokens, T fused tokens, V visual tokens, C hidden size, n labelled tokens, r metadata rows.
"""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from data_pipeline.anyres import normalise
from data_pipeline.row import IGNORE_INDEX, PackedRow
from megatron_focus.config.checks.installed import has_fused_weight_gradient
from megatron_focus.config.schema import ModelConfig
from megatron_focus.models.decoder import DecoderReport, ShrinkingDecoder
from megatron_focus.models.fusion import fuse
from megatron_focus.models.layer_specs import LayerSpecs
from megatron_focus.models.packed_layout import PackedLayout
from megatron_focus.models.rotary import PositionRotary
from megatron_focus.models.vision_tower import VisionTower
from megatron_focus.parallel.collectives import of_first_rank
from megatron_focus.parallel.pipeline_metadata import append_layout, split_layout
from megatron_focus.samplers.draws import TextDraws
from megatron_focus.samplers.heuristic import HeuristicSampler
from megatron_focus.samplers.vision_guided import VisionGuidedSampler, VisualTokens, baseline_tokens
from megatron_focus.samplers.window_plan import WindowPlan
from megatron_focus.training.balance_loss import with_balance_loss


@dataclass(kw_only=True)
class RowInputs:
    """What the first stage needs of one microbatch; later stages get everything from the stage before."""

    row: PackedRow
    plan: WindowPlan
    draws: TextDraws
    balance_coefficient: float = 0.0
    """Gradient of the row's balance term, see ``training/balance_loss.py``."""
    loss_tokens: int = 0
    """Labels of the row, counted on the host."""


@dataclass(kw_only=True)
class StageOutput:
    """What one stage makes of one microbatch."""

    output: Tensor
    """Hidden states with their layout [T + r, 1, C]; on the last stage losses [n] or logits [T, 1, vocabulary / tp]."""
    layout: PackedLayout
    visual: VisualTokens | None
    """The row's visual tokens as they entered the LLM; first stage only."""
    decoder: DecoderReport


class FocusLLaVA(LanguageModule):
    """One pipeline stage of the model."""

    def __init__(
        self,
        model: ModelConfig,
        *,
        config: TransformerConfig,
        vision_config: TransformerConfig,
        projector_config: TransformerConfig,
        specs: LayerSpecs,
        image_token_id: int,
        pg_collection: ProcessGroupCollection,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
    ) -> None:
        super().__init__(config, pg_collection)
        self.model, self.image_token_id = model, image_token_id
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = model.language.share_embeddings_and_output_weights
        self.model_type = ModelType.encoder_or_decoder
        self.input_tensor: Tensor | None = None
        if pre_process:
            self._build_vision(vision_config, projector_config, specs)
            self.embedding = LanguageModelEmbedding(
                config,
                vocab_size=model.language.padded_vocab_size,
                max_sequence_length=0,
                position_embedding_type="rope",
                scatter_to_sequence_parallel=False,
                tp_group=pg_collection.tp,
            )
        layers = TransformerBlockSubmodules(
            layer_specs=[specs.language_layer] * get_num_layers_to_build(config, vp_stage, pg_collection.pp.rank()),
            layer_norm=specs.norm,
        )
        self.decoder = ShrinkingDecoder(
            config,
            layers,
            pre_process=pre_process,
            post_process=post_process,
            pg_collection=pg_collection,
            vp_stage=vp_stage,
        )
        self.decoder.rotary = PositionRotary(model.language, config, pg_collection)
        if post_process:
            # Only labelled tokens reach the head, gathered before it, so it never sees a sequence shard.
            head_config = copy.copy(config)
            head_config.sequence_parallel = False
            head_config.gradient_accumulation_fusion &= has_fused_weight_gradient()
            self.output_layer = ColumnParallelLinear(
                config.hidden_size,
                model.language.padded_vocab_size,
                config=head_config,
                init_method=config.init_method,
                bias=False,
                gather_output=False,
                skip_weight_param_allocation=pre_process and self.share_embeddings_and_output_weights,
                tp_group=pg_collection.tp,
            )
        if pre_process or post_process:
            self.setup_embeddings_and_output_layer()

    def _build_vision(
        self, vision_config: TransformerConfig, projector_config: TransformerConfig, specs: LayerSpecs
    ) -> None:
        model, channels = self.model, self.config.hidden_size
        self.vision_tower = VisionTower(vision_config, specs, model.image, self.pg_collection)
        self.projector = MultimodalProjector(
            projector_config,
            specs.projector,
            "mlp",
            input_size=vision_config.hidden_size,
            tp_group=self.pg_collection.tp,
        )
        self.vision_sampler: VisionGuidedSampler | HeuristicSampler | None = None
        if model.vision_sampler.enabled and model.vision_sampler.method == "heuristic":
            self.vision_sampler = HeuristicSampler(model.vision_sampler)
        elif model.vision_sampler.enabled:
            self.vision_sampler = VisionGuidedSampler(
                model.vision_sampler, model.image.cells_per_side, model.init_method_std, self.config.params_dtype
            )
        self.image_newline = nn.Parameter(torch.randn(channels, dtype=self.config.params_dtype) * channels**-0.5)

    @property
    def selector(self) -> nn.Linear | None:
        """The selector of the vision-guided sampler where this stage holds one and trains it."""
        sampler = self.vision_sampler if self.pre_process else None
        return sampler.selector if isinstance(sampler, VisionGuidedSampler) and _trainable(sampler) else None

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor]) -> None:
        """Take the previous stage's output; called by Megatron's schedules."""
        self.input_tensor = input_tensor[0] if isinstance(input_tensor, list) else input_tensor

    def forward(self, inputs: RowInputs | None, return_logits: bool = False) -> StageOutput:
        """Run this stage on one microbatch.

        Args:
            inputs: the microbatch, on the first stage; None elsewhere.
            return_logits: give logits of every token that is left instead of losses.
        """
        visual = None
        if self.pre_process:
            assert inputs is not None
            hidden_states, layout, visual = self._embed(inputs)
        else:
            assert self.input_tensor is not None
            hidden_states, layout = split_layout(self.input_tensor)
        hidden_states, layout, report = self.decoder(hidden_states, layout)
        if not self.post_process:
            output = append_layout(hidden_states, layout)
        elif return_logits:
            output = self._logits(self._whole(hidden_states))
        else:
            output = self._losses(self._whole(hidden_states), layout)
        return StageOutput(output=output, layout=layout, visual=visual, decoder=report)

    def _embed(self, inputs: RowInputs) -> tuple[Tensor, PackedLayout, VisualTokens]:
        """The fused row [T, 1, C] (this rank's shard under sequence parallelism) and its layout."""
        row = inputs.row
        visual = self._visual_tokens(row.tiles, inputs)
        text = self.embedding(row.tokens[None], None)[:, 0]
        fused, layout = fuse(row, text, visual, self.image_token_id, inputs.draws)
        hidden_states = with_balance_loss(fused, visual.balance, inputs.balance_coefficient)[:, None]
        if self.config.sequence_parallel:
            length = len(layout)
            layout = layout.padded(self.tp_group.size())
            hidden_states = nn.functional.pad(hidden_states, (0, 0, 0, 0, 0, len(layout) - length))
            hidden_states = tensor_parallel.scatter_to_sequence_parallel_region(hidden_states, group=self.tp_group)
        return hidden_states, layout, visual

    def _visual_tokens(self, tiles: Tensor, inputs: RowInputs) -> VisualTokens:
        """The row's visual tokens; a row without images still ties every vision parameter to the graph."""
        if len(tiles) == 0:
            return self._no_visual_tokens(inputs.plan)
        pixels = normalise(tiles, self.config.params_dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trainable(self.vision_tower)):
            features = self.vision_tower(pixels)
        features = self.projector(features)
        if self.vision_sampler is None:
            return baseline_tokens(features, self.image_newline, inputs.plan)
        return self.vision_sampler(
            features, self.image_newline, inputs.plan, partial(of_first_rank, group=self.tp_group)
        )

    def _no_visual_tokens(self, plan: WindowPlan) -> VisualTokens:
        parts = [self.vision_tower, self.projector, self.vision_sampler]
        parameters = [p for part in parts if part is not None for p in part.parameters() if p.requires_grad]
        # Data-parallel ranks reduce gradients together, and a parameter without one would make the others wait. The
        # balance term, with coefficient 0 in a row without windows, ties them to the graph.
        anchor = sum((p.flatten()[0] * 0.0 for p in [*parameters, self.image_newline]), start=torch.zeros(()))
        tokens = self.image_newline.new_zeros(0, self.config.hidden_size)
        empty = tokens.new_zeros(0, dtype=torch.int64)
        scales = len(self.model.vision_sampler.scales) if self.vision_sampler is not None else 0
        return VisualTokens(
            tokens=tokens,
            newline=empty.bool(),
            image=empty,
            lengths=empty,
            scale_counts=empty.new_zeros(scales),
            balance=anchor.float(),
        )

    def _whole(self, hidden_states: Tensor) -> Tensor:
        """The whole row on every rank; each then computes all of it, so the gradient is split, not summed."""
        if not self.config.sequence_parallel:
            return hidden_states
        return tensor_parallel.gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False, group=self.tp_group
        )

    def _logits(self, hidden_states: Tensor) -> Tensor:
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits, _ = self.output_layer(hidden_states, weight=weight)
        return logits

    def _losses(self, hidden_states: Tensor, layout: PackedLayout) -> Tensor:
        """Cross entropy of the labelled tokens, float32 [n]; the head computes nothing for the others."""
        labelled = (layout.label != IGNORE_INDEX).nonzero().squeeze(1)
        # A row without a label computes one token for nothing, so that the graph and the collectives stay the same.
        rows = labelled if len(labelled) > 0 else labelled.new_zeros(1)
        logits = self._logits(hidden_states[rows])
        losses = self.compute_language_model_loss(layout.label[rows].long().clamp(min=0)[None], logits)[0]
        return losses if len(labelled) > 0 else losses * 0.0


def _trainable(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())
