"""Bytes saved for the backward pass, by explicit formulas for each ``transformer_impl``.

``local`` was checked against what autograd really keeps (tests/unit/planning). ``transformer_engine`` was written from
its modules' sources and is NOT measured: its norms keep input and output in the layer's dtype, its attention the
rotated queries and keys, its SwiGLU the input of the activation alone. Neither is what ``local`` keeps on GPUs with
torch's variable-length attention, nor the scores of an unfused one, which are a lower bound: Transformer Engine pads
samples to the longest.

All linears are taken to keep their input. Those of a frozen language model (stage 1) do not, so its activations are
overestimated there.

Shapes: T tokens of a row, C hidden size, F feed-forward width, q query and k key channels, n heads, e bytes an element,
t tensor-parallel ranks; one rank's share throughout. w, f, a are width, feed-forward and heads of the vision tower, g^2
cells of a tile.
"""

from megatron_focus.config.schema import RunConfig
from megatron_focus.planning.attention import ON_CPUS, Attention, Kernel
from megatron_focus.planning.workload import LayerLoad, RowLoad
from megatron_focus.samplers.text_guided import WORKSPACE_BYTES

_FP32 = 4
_INDEX = 8


class Activations:
    """Saved bytes of the parts of a model, for one row on one rank."""

    def __init__(self, config: RunConfig, attention: Attention = ON_CPUS) -> None:
        self.config, self.model, self.attention = config, config.model, attention
        self.element = 2 if config.training.precision == "bf16" else 4
        """e."""
        self.tp = config.parallel.tensor_model_parallel_size
        """t."""
        self.fused = self.model.transformer_impl == "transformer_engine"
        language = self.model.language
        self.head_size = language.kv_channels or language.hidden_size // language.num_attention_heads
        self.query = self.head_size * language.num_attention_heads / self.tp
        """q of this rank."""
        self.key = max(self.head_size * language.num_query_groups / self.tp, self.head_size)
        """k of this rank; a key head is held whole, so ranks share heads where there are fewer heads than ranks."""

    def shard(self, tokens: float) -> float:
        """Tokens whose hidden states this rank holds."""
        return tokens / self.tp if self.config.parallel.sequence_parallel else tokens

    def hidden(self, tokens: float) -> float:
        """Hidden states at a boundary."""
        return self.element * self.model.language.hidden_size * self.shard(tokens)

    def decoder_layer(self, load: LayerLoad, samples: float, selective: bool) -> float:
        """One decoder layer that is not recomputed as a whole."""
        e, language = self.element, self.model.language
        norms = 2 * self._norm(load.tokens) + 2 * self.hidden(load.tokens)  # the linears behind them keep their output
        ffn = language.ffn_hidden_size / self.tp
        mlp = (3 if self.fused else 5) * ffn * e * load.tokens
        attention = self._attention_input(load) if selective else self.core_attention(load, samples)
        return norms + mlp + attention

    def _norm(self, tokens: float) -> float:
        """RMSNorm, without its output."""
        if self.fused:
            return self.hidden(tokens) + _FP32 * self.shard(tokens)
        # torch's own keeps its input and the normalised input in fp32.
        return self.shard(tokens) * _FP32 * (2 * self.model.language.hidden_size + 1)

    def core_attention(self, load: LayerLoad, samples: float) -> float:
        """The core attention with its inputs, where it is not recomputed."""
        e, tokens = self.element, load.tokens
        statistics = _FP32 * self.model.language.num_attention_heads / self.tp * tokens
        # Rotated queries and keys, the QKV output that the values are a view of, and the result.
        of_row = e * tokens * (2 * self.query + self.key + self.query + 2 * self.key) + statistics
        if self.fused:
            return of_row + self._scores(load)
        trigonometry = 4 * e * self.head_size * tokens
        if self.attention.language is Kernel.FUSED:
            return of_row + trigonometry
        together = self.query if samples > 1 else 0.0  # the samples' results are put into one row
        return e * tokens * (2 * self.query + 2 * self.key + together) + trigonometry + statistics

    def _scores(self, load: LayerLoad) -> float:
        """What an unfused attention keeps: the softmax, and what the mask left of it."""
        if self.attention.language is not Kernel.UNFUSED:
            return 0.0
        return 2 * self.element * self.model.language.num_attention_heads / self.tp * load.squares

    def _attention_input(self, load: LayerLoad) -> float:
        """What stays when the core attention is recomputed: its inputs and the result."""
        copied = self.query if self.key > self.head_size else 0.0  # queries of one key group are a view
        return self.element * load.tokens * (copied + 2 * self.query + 2 * self.key)

    def vision(self, tiles: float, granularity: str | None, layers_recomputed: int) -> float:
        """Vision tower over ``tiles`` tiles; nothing if it is frozen.

        Args:
            tiles: of the row.
            granularity: as in the configuration.
            layers_recomputed: of the tower, under ``full``.
        """
        if "vision_tower" in self.config.optimizer.freeze:
            return 0.0
        vision, image, e = self.model.vision, self.model.image, self.element
        tokens = tiles * (image.cells_per_side**2 + 1)
        layers = vision.num_layers - 1
        boundary = e * vision.hidden_size * tokens
        stem = e * tiles * 3 * image.tile_size**2 + boundary
        whole = layers - layers_recomputed if granularity == "full" else layers
        each = self.vision_layer(tiles, granularity == "selective")
        return stem + whole * each + (layers - whole) * boundary

    def vision_layer(self, tiles: float, selective: bool) -> float:
        """One layer of the tower."""
        vision, e = self.model.vision, self.element
        tokens = tiles * (self.model.image.cells_per_side**2 + 1)
        width, ffn = vision.hidden_size, vision.ffn_hidden_size / self.tp
        statistics = 0.0 if selective else _FP32 * vision.num_attention_heads / self.tp
        if self.attention.vision is Kernel.UNFUSED and not selective:  # its softmax
            statistics += e * vision.num_attention_heads / self.tp * (self.model.image.cells_per_side**2 + 1)
        norms = 4 * e * width + 4 * (_FP32 if self.fused else e)
        return tokens * (norms + e * (4 * width / self.tp + 3 * ffn) + statistics)

    def projector(self, tiles: float) -> float:
        """The projector's input and both its hidden forms."""
        image, vision = self.model.image, self.model.vision
        cells = tiles * image.cells_per_side**2
        tower_out = vision.hidden_size * tiles * (image.cells_per_side**2 + 1)
        if "projector" in self.config.optimizer.freeze and "vision_tower" in self.config.optimizer.freeze:
            return 0.0
        return self.element * (tower_out + 2 * self.model.language.hidden_size / self.tp * cells)

    def sampler(self, tiles: float, visual: float) -> float:
        """The vision-guided sampler, which every tensor-parallel rank runs whole; images with a border."""
        sampler, e, width = self.model.vision_sampler, self.element, self.model.language.hidden_size
        if not sampler.enabled:
            return _INDEX * visual
        cells, window = self.model.image.cells_per_side**2, sampler.window
        windows = cells / window**2
        scored: float = e * width * cells  # masked cells that were pooled
        if sampler.score_pooling == "max":
            scored = e * width * (cells + cells / window + windows) + width * windows
        context = _FP32 * width * (cells + windows) + _FP32 * windows * (cells + 4 * len(sampler.scales))
        pooled = 0.0
        for scale in sampler.scales:
            if scale not in ("1x1", "discard"):
                rows, columns = map(int, scale.split("x"))
                pooled += e * width * (cells + cells / columns + cells / (rows * columns))
        taken = visual * (e * width + 2 * _INDEX + _FP32)
        return tiles * (scored + context + pooled) + taken

    def fusion(self, row: RowLoad) -> float:
        """Indices of embedding and fusion."""
        return _INDEX * (2 * row.text + row.visual)

    def head(self, row: RowLoad) -> float:
        """Final norm, and logits of the labelled tokens."""
        vocabulary = self.model.language.padded_vocab_size / self.tp
        width, parallel = self.model.language.hidden_size, self.config.parallel
        # Transformer Engine's fused loss writes the gradient over the logits; the others keep the softmax in fp32.
        in_place = parallel.cross_entropy_loss_fusion and parallel.cross_entropy_fusion_impl == "te"
        kept = (self.element if in_place else _FP32) * vocabulary
        return self._norm(row.layers[-1].tokens) + row.labels * (self.element * width + kept + 2 * _INDEX)

    def workspace(self, row: RowLoad, first: bool, last: bool) -> float:
        """Largest tensors that the backward pass holds beside the saved ones, on one chunk. Not measured."""
        e, language = self.element, self.model.language
        tokens = max((load.tokens for load in row.layers), default=0.0)
        ffn = 3 * e * tokens * language.ffn_hidden_size / self.tp
        gathered = 2 * e * tokens * language.hidden_size
        sizes = [ffn + gathered]
        if last:
            sizes.append(2 * e * row.labels * self.model.language.padded_vocab_size / self.tp)
        if first and self.model.vision_sampler.enabled:
            cells = row.tiles * self.model.image.cells_per_side**2
            sizes.append(2 * _FP32 * cells * language.hidden_size)
        heads = language.num_attention_heads / self.tp
        sizes.append(max((self._scores(load) for load in row.layers), default=0.0))  # gradients of the scores
        sizes.append(3 * min(WORKSPACE_BYTES, _FP32 * heads * row.selection_pairs))
        return max(sizes)
