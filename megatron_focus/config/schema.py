"""The configuration tree: dataclasses whose fields are the only settings there are.

Field names that Megatron-Core has too are Megatron-Core's, word for word. Types, callables and
``TransformerConfig`` objects are derived from these values by the builders and never appear in YAML.
"""

from dataclasses import dataclass, field

from data_pipeline.config import DataConfig, ImageGeometry


@dataclass(kw_only=True)
class VisionConfig:
    """The CLIP ViT whose penultimate features are used (LLaVA-NeXT's ``hidden_states[-2]``)."""

    num_layers: int = 24
    """Layers of the published tower. The last one is never built, because its output is not used."""
    hidden_size: int = 1024
    """Width of the tower."""
    ffn_hidden_size: int = 4096
    """Width of its feed-forward layers."""
    num_attention_heads: int = 16
    """Attention heads of the tower."""
    layernorm_epsilon: float = 1e-5
    """Epsilon of its LayerNorms."""


@dataclass(kw_only=True)
class LanguageConfig:
    """The decoder-only LLM backbone."""

    architecture: str = "llama"
    """Family of the backbone, ``llama``, ``qwen2`` or ``mistral``: decides the class named in the release."""
    num_layers: int = 32
    """Decoder layers (L)."""
    hidden_size: int = 4096
    """Width (C)."""
    ffn_hidden_size: int = 14336
    """Width of the gated feed-forward layers."""
    num_attention_heads: int = 32
    """Query heads (n)."""
    num_query_groups: int = 8
    """Key and value heads (g)."""
    kv_channels: int | None = None
    """Size of a head (d); ``hidden_size / num_attention_heads`` when null."""
    vocab_size: int = 128256
    """Rows of the embedding that stand for tokens; padded internally."""
    make_vocab_size_divisible_by: int = 128
    """The embedding is padded to a multiple of this under every parallel layout, so that the loss is the same."""
    max_position_embeddings: int = 8192
    """Longest sample the backbone is meant for, in tokens."""
    layernorm_epsilon: float = 1e-5
    """Epsilon of the RMSNorms."""
    rotary_base: int = 500000
    """Base period of RoPE."""
    rope_scaling: bool = False
    """Llama-3.1's frequency scaling of RoPE."""
    rope_scaling_factor: float = 8.0
    """Its factor."""
    add_qkv_bias: bool = False
    """Bias in the QKV projection (Qwen2)."""
    share_embeddings_and_output_weights: bool = False
    """Tie the head to the embedding."""

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding, tokens and padding together."""
        return -(-self.vocab_size // self.make_vocab_size_divisible_by) * self.make_vocab_size_divisible_by


@dataclass(kw_only=True)
class VisionSamplerConfig:
    """Vision-guided sampler (paper section 3.2, Eq. 1-5 and 10)."""

    enabled: bool = True
    """Off means LLaVA-NeXT's own visual tokens."""
    method: str = "learned"
    """``learned``: a selector chooses a scale for each region; ``heuristic``: the cells most similar to the global view
    stay, the baseline of the supplement's section 6. It has no parameters, and needs ``scales: ["1x1"]``."""
    heuristic_keep: float | None = None
    """``heuristic`` only: share of an image's cells that stay, above 0 and at most 1."""
    window: int = 4
    """Side w of a region in cells: 1, 2, 4, 8 or 12, a divisor of the cells along a tile."""
    scales: list[str] = field(default_factory=lambda: ["1x1", "2x2", "4x4"])
    """Pooling kernels (rows x columns) to choose from, finest first. Window 1 has ``["1x1", "discard"]``."""
    score_pooling: str = "max"
    """How a region is pooled before it is scored: ``max`` or ``mean`` over its valid cells."""
    score_scale: float | None = None
    """Factor of the inner products of a region with the global view, which are the selector's input. Null: 1/sqrt(C),
    as in attention; the paper's Eq. 1 has no factor, which is 1 (64 times more at C = 4096)."""
    center_scores: bool = False
    """Take from each score its mean over the regions of the picture, so that what all regions share does not choose."""
    gate: str = "paper"
    """``paper``: chosen tokens times the top-1 probability in training only (Eq. 2); ``ste``: p / p.detach() in
    training; ``switch``: the probability in training and inference."""
    global_view: str = "compress"
    """``compress``: the global view is sampled like the local map; ``keep``: whole; ``drop``: used as context only."""
    balance_loss_coeff: float = 0.1
    """Weight alpha of the balance loss (Eq. 3). With the selector frozen, ``balance_scope: batch`` trains nothing."""
    balance_scope: str = "batch"
    """Regions over which f and P of the balance loss are taken (Eq. 4, 5). ``batch``: those of the global batch,
    however it is packed and laid out; the loss trains the selector alone. ``row``: those of each microbatch, weighted
    by their number; the loss reaches the features too, and its gradient depends on which samples share a row."""
    balance_weights: list[float] | None = None
    """Penalty w_i of each scale (Eq. 10), in the order of ``scales``; they sum to the number of scales. Null: all 1."""

    @property
    def global_views(self) -> bool:
        """Whether the language model reads the tokens of global views."""
        return not (self.enabled and self.global_view == "drop")


@dataclass(kw_only=True)
class TextSamplerConfig:
    """Text-guided sampler (paper section 3.3, Eq. 6-9)."""

    mode: str = "random"
    """Row of Table 6: ``off``; ``direct`` (inference only); ``train`` (fixed layer and gamma); ``random`` (both drawn
    per sample in training)."""
    layer: int = 8
    """Tokens are dropped BEFORE this layer, counted from 0; fixed modes and inference."""
    gamma: float = 0.85
    """Share of importance to exceed (Eq. 9); 1 or more keeps everything. Fixed modes and inference."""
    queries: str = "first"
    """Whose words ask in training, so that no answer decides what is kept while it is learnt; what stands before the
    last image never asks. ``first``: the user's text before the first answer. ``random_turn``: a user turn drawn for
    the sample in each step; the answers before it are history then, without loss. A release asks with the latest."""
    layer_range: list[int] = field(default_factory=lambda: [8, 24])
    """First and last layer, both included, of the random draw."""
    gamma_range: list[float] = field(default_factory=lambda: [0.7, 1.0])
    """Interval of the random draw of gamma."""


@dataclass(kw_only=True)
class ModelConfig:
    """Everything that decides what is computed."""

    image: ImageGeometry = field(default_factory=ImageGeometry)
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision_sampler: VisionSamplerConfig = field(default_factory=VisionSamplerConfig)
    text_sampler: TextSamplerConfig = field(default_factory=TextSamplerConfig)
    transformer_impl: str = "local"
    """``local`` or ``transformer_engine``. An implementation that is not installed is an error, never replaced."""
    init_method_std: float = 0.02
    """Standard deviation of newly initialised weights."""


@dataclass(kw_only=True)
class ParallelConfig:
    """How the computation is laid out over ranks. No value here changes what is computed."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int | None = None
    """Model chunks per pipeline stage (interleaved schedule, with its messages overlapped)."""
    pipeline_model_parallel_layout: str | None = None
    """Megatron's layout string, e.g. ``"Et*5|t*9|t*9|t*9L"``: fewer layers beside the vision tower."""
    sequence_parallel: bool = False
    context_parallel_size: int = 1
    """Always 1: context parallelism is refused (see validation)."""
    use_distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks (ZeRO-1 and the gradient half of ZeRO-2)."""
    overlap_grad_reduce: bool = False
    """Reduce gradients over data-parallel ranks while the last microbatch's backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather updated parameters over data-parallel ranks while the next step's forward pass already runs."""
    gradient_accumulation_fusion: bool = False
    """Matrix products add weight gradients to the buffer themselves. Transformer Engine's layers can; Megatron's (the
    local ones, and always the head) do where NVIDIA apex is installed."""
    cross_entropy_loss_fusion: bool = False
    """Fused kernels, and one message less, for the loss over the vocabulary."""
    cross_entropy_fusion_impl: str = "native"
    """``native``: Megatron's, compiled at run time. ``te``: Transformer Engine's, which writes the gradient over the
    logits."""
    recompute_granularity: str | None = None
    """Null, ``selective`` (core attention) or ``full``."""
    recompute_method: str | None = None
    """``uniform`` or ``block``; with ``full`` only."""
    recompute_num_layers: int | None = None
    """Layers per recomputed group (uniform) or recomputed layers (block)."""


@dataclass(kw_only=True)
class OptimizerSettings:
    """AdamW and its schedule."""

    fused_adam: str | None = None
    """Whose fused AdamW: ``transformer_engine``, ``apex`` (NVIDIA's) or ``torch``. Null takes the first of these that
    is installed, ``torch`` on CPUs; the run says which."""
    lr: float = 1e-5
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    module_lr: dict[str, float] = field(default_factory=dict)
    """Peak learning rate by module (``vision_tower``, ``projector``, ``vision_sampler``, ``language_model``) where it
    differs from ``lr``; each follows the same schedule."""
    freeze: list[str] = field(default_factory=list)
    """Modules, named as in ``module_lr``, that are not trained."""
    lr_decay_style: str = "cosine"
    """``cosine``, ``linear`` or ``constant``."""
    lr_warmup_fraction: float = 0.03
    """Share of the run's iterations over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(kw_only=True)
class TrainingConfig:
    """The run."""

    train_iters: int = 1000
    """Steps of the whole run; the schedule's length."""
    exit_iter: int | None = None
    """Stop (and save) after this step although the schedule goes on; null runs to the end."""
    global_batch_size: int = 128
    """Samples of one step, over all ranks."""
    precision: str = "bf16"
    """``bf16`` (fp32 master weights and gradients) or ``fp32``."""
    seed: int = 1234
    """Seed of initial weights and of the random draws of the text-guided sampler."""
    deterministic: bool = False
    """Repeat itself bit for bit on GPUs, too: torch, cuBLAS, NCCL and Transformer Engine are told to. Not seen on a GPU
    yet."""
    loss_spike_factor: float | None = None
    """A step whose loss is above this many times the usual one is skipped, as one that is not finite always is."""
    max_skipped_steps: int = 10
    """Steps skipped one after another; at the next one the run stops and names the samples. A skipped step does not
    move the learning rate on."""
    step_timeout_minutes: float = 30.0
    """A step that takes longer, with what is saved or loaded beside it, hangs: every rank shows its stacks and ends."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """Where the state goes and comes from."""

    save: str | None = None
    """Folder of this run's checkpoints. A run that finds some there continues from the newest undamaged one."""
    save_interval: int = 500
    """Steps between checkpoints; one is always written at the end. Training goes on while they are written."""
    keep_last: int = 2
    """Checkpoints kept in ``save``; 0 keeps all."""
    pretrained: str | None = None
    """Checkpoint whose weights a new run starts from."""
    new_modules: list[str] = field(default_factory=list)
    """Modules, named as in ``optimizer.freeze``, that are not taken from ``pretrained`` but begin with new weights."""


@dataclass(kw_only=True)
class LoggingConfig:
    """What is reported."""

    tensorboard_dir: str | None = None
    """Folder of TensorBoard events; null writes none."""
    log_interval: int = 1
    """Steps between progress lines."""
    peak_tflops: float | None = None
    """Peak of one device in TFLOP/s, for MFU; null takes it from the device's name, and reports no MFU if unknown."""


@dataclass(kw_only=True)
class RunConfig:
    """The whole configuration of a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
