"""The smallest preset that a benchmark of the model can run."""

from data_pipeline.config import ImageGeometry
from megatron_focus.benchmark.presets import Preset
from megatron_focus.config.schema import LanguageConfig, ModelConfig, TextSamplerConfig, VisionConfig

SMALL = Preset(
    name="small",
    model=ModelConfig(
        image=ImageGeometry(tile_size=112, grid_pinpoints=[[224, 224]]),
        vision=VisionConfig(num_layers=3, hidden_size=32, ffn_hidden_size=64, num_attention_heads=2),
        language=LanguageConfig(
            num_layers=4,
            hidden_size=64,
            ffn_hidden_size=96,
            num_attention_heads=4,
            num_query_groups=2,
            vocab_size=300,
            make_vocab_size_divisible_by=64,
        ),
        text_sampler=TextSamplerConfig(mode="train", layer=1, gamma=0.7),
    ),
    samples=2,
    rounds=1,
)
VISUAL = 64 + 12 * (16 + 1)  # 480 x 640 on 2 x 2 tiles of 8 x 8 cells: 12 of 16 rows show the image
