"""CLIP ViT up to its penultimate features.

Megatron-Core's ``CLIPViTModel`` with one layer less than the published tower: LLaVA-NeXT reads ``hidden_states[-2]``,
which no later layer and no post-norm touches.
"""

import torch
from megatron.core.models.vision.clip_vit_model import CLIPViTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from data_pipeline.config import ImageGeometry
from megatron_focus.models.layer_specs import LayerSpecs


class VisionTower(CLIPViTModel):
    """Tiles in, features of their cells out."""

    def __init__(
        self,
        config: TransformerConfig,
        specs: LayerSpecs,
        geometry: ImageGeometry,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__(
            config,
            specs.vision_layer,
            ln_pre_impl=specs.norm,
            patch_dim=geometry.patch_size,
            img_h=geometry.tile_size,
            img_w=geometry.tile_size,
            pg_collection=pg_collection,
        )
        with torch.no_grad():  # Megatron-Core draws the class token from N(0, 1), far above the other embeddings
            self.class_token.mul_(config.init_method_std)
            self.position_embeddings.weight.mul_(config.init_method_std)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """[t, 3, P, P], normalised -> [t, g * g, hidden], class token dropped."""
        features: torch.Tensor = super().forward(tiles)
        return features[:, self.class_token_len :]
