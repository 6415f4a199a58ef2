"""What is measured: model sizes, the batch, and which samplers are on."""

from dataclasses import dataclass

from megatron_focus.config.schema import LanguageConfig, ModelConfig, TextSamplerConfig, VisionConfig


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which samplers are on."""

    name: str
    vision: bool = False
    text: bool = False


OFF = Setting(name="samplers off")
SETTINGS = (
    OFF,
    Setting(name="vision-guided", vision=True),
    Setting(name="text-guided", text=True),
    Setting(name="both samplers", vision=True, text=True),
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and a batch; every sample is some text and one image of 4 tiles and the global view."""

    name: str
    model: ModelConfig
    """The samplers in it are those that a setting switches on; the text-guided one drops at a quarter of the depth."""
    samples: int
    """Samples of a step, packed into one row on one side and a batch without padding on the other."""
    rounds: int
    """Rounds that count; each runs every side once."""
    image_size: tuple[int, int] = (480, 640)
    """Height and width in pixels."""
    lead_tokens: int = 5
    """Tokens before the image."""
    instruction_tokens: int = 25
    """Tokens after the image that ask."""
    answer_tokens: int = 30
    """Tokens with a label."""


LEARNING_RATE = 1e-12
"""Of both sides: the whole update is computed, and is so small that the same tokens are kept in every step."""

# With random weights attention is almost uniform, so the share of tokens that stay is almost gamma; this gamma leaves
# the 75 % that trained models keep at 0.85 (paper, Table 6).
GAMMA = 0.765

CPU = Preset(
    name="cpu",
    model=ModelConfig(
        vision=VisionConfig(num_layers=7, hidden_size=256, ffn_hidden_size=1024, num_attention_heads=4),
        language=LanguageConfig(
            num_layers=12,
            hidden_size=512,
            ffn_hidden_size=1408,
            num_attention_heads=8,
            num_query_groups=8,
            vocab_size=32000,
        ),
        text_sampler=TextSamplerConfig(mode="train", layer=3, gamma=GAMMA),
    ),
    samples=1,
    rounds=7,
)

GPU = Preset(
    name="gpu",
    model=ModelConfig(  # CLIP ViT-L/14-336 and a quarter of Llama-3-8B, with a vocabulary that leaves memory for both
        language=LanguageConfig(num_layers=8, vocab_size=32000),
        text_sampler=TextSamplerConfig(mode="train", layer=2, gamma=GAMMA),
    ),
    samples=2,
    rounds=20,
)

PRESETS = {preset.name: preset for preset in (CPU, GPU)}
