"""Cross-checks of a configuration: what single fields cannot know of each other.

Each refusal is one sentence that names the keys, their values and what to change. All of them are collected, so a user
sees every problem at once.
"""

import importlib.util
import re

from data_pipeline.config import DataConfig
from data_pipeline.conversations.rendering import TEMPLATE_NAMES
from data_pipeline.decoding.probe import MAX_IMAGE_PIXELS
from data_pipeline.loading.ordering import SHUFFLES
from megatron_focus.config.schema import ModelConfig, ParallelConfig, RunConfig, VisionSamplerConfig

KERNELS = ("1x1", "2x1", "1x2", "2x2", "4x2", "2x4", "4x4")
MODULES = ("vision_tower", "projector", "vision_sampler", "language_model")


def validate(config: RunConfig, world_size: int) -> None:
    """Check ``config`` for a run on ``world_size`` ranks.

    Raises:
        ValueError: at least one check failed; the message lists all of them.
    """
    # Sizes first: the other checks divide by them.
    problems = _size_problems(config) or [
        *_model_problems(config.model),
        *_parallel_problems(config, world_size),
        *_training_problems(config),
    ]
    if problems:
        raise ValueError("the configuration cannot run:\n" + "\n".join(f"  - {p}" for p in problems))


def validate_data(config: RunConfig) -> None:
    """Check what training needs beyond a computable model.

    Raises:
        ValueError: no data set or no tokenizer is given.
    """
    for key, value in (("data.path", config.data.path), ("data.tokenizer", config.data.tokenizer)):
        if value is None:
            raise ValueError(f"{key} is not set: name the folder that tools/prepare_data.py wrote or read")


def padded_vocab_size(config: ModelConfig) -> int:
    """Rows of the embedding, tokens and padding together."""
    multiple = config.language.make_vocab_size_divisible_by
    return -(-config.language.vocab_size // multiple) * multiple


def _one_of(key: str, value: object, allowed: tuple[object, ...]) -> list[str]:
    return [] if value in allowed else [f"{key}={value!r} is unknown; use one of {', '.join(map(str, allowed))}"]


def _size_problems(config: RunConfig) -> list[str]:
    model, parallel, training = config.model, config.parallel, config.training
    language, vision, image = model.language, model.vision, model.image
    at_least_one = {
        "model.image.tile_size": image.tile_size,
        "model.image.patch_size": image.patch_size,
        "model.image.grid_pinpoints (their number)": len(image.grid_pinpoints),
        "model.vision.hidden_size": vision.hidden_size,
        "model.vision.ffn_hidden_size": vision.ffn_hidden_size,
        "model.vision.num_attention_heads": vision.num_attention_heads,
        "model.language.num_layers": language.num_layers,
        "model.language.hidden_size": language.hidden_size,
        "model.language.ffn_hidden_size": language.ffn_hidden_size,
        "model.language.num_attention_heads": language.num_attention_heads,
        "model.language.num_query_groups": language.num_query_groups,
        "model.language.kv_channels": 1 if language.kv_channels is None else language.kv_channels,
        "model.language.vocab_size": language.vocab_size,
        "model.language.make_vocab_size_divisible_by": language.make_vocab_size_divisible_by,
        "model.language.rotary_base": language.rotary_base,
        "parallel.tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "parallel.pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "data.max_sequence_length": config.data.max_sequence_length,
        "data.worst_case_factor": config.data.worst_case_factor,
        "data.rows_multiple_of": config.data.rows_multiple_of,
        "model.image.max_image_pixels": image.max_image_pixels,
        "training.train_iters": training.train_iters,
        "training.exit_iter": 1 if training.exit_iter is None else training.exit_iter,
        "training.global_batch_size": training.global_batch_size,
        "checkpoint.save_interval": config.checkpoint.save_interval,
        "logging.log_interval": config.logging.log_interval,
    }
    at_least_zero = {
        "model.vision_sampler.balance_loss_coeff": model.vision_sampler.balance_loss_coeff,
        "data.num_workers": config.data.num_workers,
        "data.prefetch_steps": config.data.prefetch_steps,
        "data.shuffle_window": config.data.shuffle_window,
        "data.cache_gib": config.data.cache_gib or 0,
        **{f"data.source_weights.{source}": weight for source, weight in config.data.source_weights.items()},
        "data.seed": config.data.seed,
        "training.seed": training.seed,
        "training.max_skipped_steps": training.max_skipped_steps,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "optimizer.clip_grad": config.optimizer.clip_grad,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        **{f"optimizer.module_lr.{module}": lr for module, lr in config.optimizer.module_lr.items()},
    }
    problems = [f"{key}={value} must be 1 or more" for key, value in at_least_one.items() if value < 1]
    problems += [f"{key}={value} must be 0 or more" for key, value in at_least_zero.items() if value < 0]
    if config.optimizer.lr <= 0:
        problems.append(f"optimizer.lr={config.optimizer.lr} must be above 0; freeze modules with optimizer.freeze")
    return problems


def _model_problems(model: ModelConfig) -> list[str]:
    problems: list[str] = []
    image, vision, language = model.image, model.vision, model.language
    if image.tile_size % image.patch_size:
        problems.append(
            f"model.image.tile_size={image.tile_size} is not a multiple of model.image.patch_size={image.patch_size}"
        )
    for pinpoint in image.grid_pinpoints:
        if len(pinpoint) != 2 or any(side <= 0 or side % image.tile_size for side in pinpoint):
            problems.append(
                f"model.image.grid_pinpoints has {pinpoint}: both sides must be multiples of "
                f"model.image.tile_size={image.tile_size}"
            )
    if vision.num_layers < 2:
        problems.append(f"model.vision.num_layers={vision.num_layers}: the penultimate features need at least 2 layers")
    for name, part in (("vision", vision), ("language", language)):
        if part.hidden_size % part.num_attention_heads:
            problems.append(
                f"model.{name}.hidden_size={part.hidden_size} is not a multiple of "
                f"model.{name}.num_attention_heads={part.num_attention_heads}"
            )
    head = language.kv_channels or language.hidden_size // language.num_attention_heads
    if head % 2:
        problems.append(f"the head size {head} (model.language.kv_channels) must be even: RoPE turns pairs of channels")
    if language.num_attention_heads % language.num_query_groups:
        problems.append(
            f"model.language.num_attention_heads={language.num_attention_heads} is not a multiple of "
            f"model.language.num_query_groups={language.num_query_groups}"
        )
    if language.add_qkv_bias != (language.architecture == "qwen2"):
        problems.append(
            f"model.language.add_qkv_bias={language.add_qkv_bias} does not fit model.language.architecture="
            f"{language.architecture}: Qwen2 has a bias there, Llama and Mistral have none"
        )
    problems += _one_of("model.language.architecture", language.architecture, ("llama", "qwen2", "mistral"))
    problems += _one_of("model.transformer_impl", model.transformer_impl, ("local", "transformer_engine"))
    if model.transformer_impl == "transformer_engine" and importlib.util.find_spec("transformer_engine") is None:
        problems.append(
            "model.transformer_impl=transformer_engine, but Transformer Engine is not installed: install the 'gpu' "
            "extra, or set model.transformer_impl=local"
        )
    return problems + _vision_sampler_problems(model) + _text_sampler_problems(model)


def _vision_sampler_problems(model: ModelConfig) -> list[str]:
    sampler, problems = model.vision_sampler, []
    cells = model.image.cells_per_side
    problems += _one_of("model.vision_sampler.method", sampler.method, ("learned", "heuristic"))
    problems += _one_of("model.vision_sampler.score_pooling", sampler.score_pooling, ("max", "mean"))
    problems += _one_of("model.vision_sampler.gate", sampler.gate, ("paper", "ste", "switch"))
    problems += _one_of("model.vision_sampler.global_view", sampler.global_view, ("compress", "keep", "drop"))
    problems += _one_of("model.vision_sampler.window", sampler.window, (1, 2, 4, 8, 12))
    if not sampler.enabled:
        return problems
    problems += _heuristic_problems(sampler)
    if not set(sampler.scales) - {"discard"}:
        problems.append(f"model.vision_sampler.scales={sampler.scales} leaves no scale that keeps tokens")
    if sampler.window > 0 and cells % sampler.window:
        problems.append(
            f"model.vision_sampler.window={sampler.window} does not divide the {cells} cells along a tile "
            f"(tile_size {model.image.tile_size} / patch_size {model.image.patch_size})"
        )
    allowed = ("1x1", "discard") if sampler.window == 1 else KERNELS
    for scale in sampler.scales:
        if scale not in allowed:
            problems.append(
                f"model.vision_sampler.scales has {scale!r}, which window {sampler.window} does not offer; "
                f"use some of {', '.join(allowed)}"
            )
        elif scale != "discard" and any(sampler.window % int(side) for side in scale.split("x")):
            problems.append(
                f"model.vision_sampler.scales has {scale!r}, which does not fit into window {sampler.window}"
            )
    order = [s for s in (*KERNELS, "discard") if s in sampler.scales]
    if sampler.scales != order:
        problems.append(
            f"model.vision_sampler.scales={sampler.scales} must name each scale once, finest first: {order}"
        )
    weights = sampler.balance_weights
    if weights is not None and (
        len(weights) != len(sampler.scales) or abs(sum(weights) - len(weights)) > 1e-6 or min(weights) < 0
    ):
        problems.append(
            f"model.vision_sampler.balance_weights={weights} must be one weight >= 0 a scale, "
            f"{len(sampler.scales)} in all, with the sum {len(sampler.scales)} (Eq. 10)"
        )
    return problems


def _heuristic_problems(sampler: VisionSamplerConfig) -> list[str]:
    """The heuristic sampler keeps single cells, and has nothing that a selector has."""
    keep = sampler.heuristic_keep
    if sampler.method != "heuristic":
        wrong = [f"model.vision_sampler.heuristic_keep={keep} belongs to model.vision_sampler.method=heuristic"]
        return wrong if keep is not None else []
    problems = []
    # The sampler counts in parts per million.
    if keep is None or not 1e-6 <= keep <= 1:
        problems.append(
            f"model.vision_sampler.method=heuristic needs model.vision_sampler.heuristic_keep, a share above 0 and at "
            f"most 1; it is {keep}"
        )
    if sampler.scales != ["1x1"]:
        problems.append(
            f"model.vision_sampler.method=heuristic keeps single cells: set model.vision_sampler.scales to ['1x1'], "
            f"not {sampler.scales}"
        )
    usual = VisionSamplerConfig()
    for key in ("score_pooling", "gate", "balance_weights"):
        value = getattr(sampler, key)
        if value != getattr(usual, key):
            problems.append(f"model.vision_sampler.{key}={value} belongs to model.vision_sampler.method=learned")
    return problems


def _text_sampler_problems(model: ModelConfig) -> list[str]:
    sampler, layers = model.text_sampler, model.language.num_layers
    problems = _one_of("model.text_sampler.mode", sampler.mode, ("off", "direct", "train", "random"))
    if sampler.mode == "off":
        return problems
    if not 0 <= sampler.layer < layers:
        problems.append(f"model.text_sampler.layer={sampler.layer} is not a layer: use 0 to {layers - 1}")
    if sampler.gamma <= 0:
        problems.append(f"model.text_sampler.gamma={sampler.gamma} must be above 0")
    if sampler.mode == "random":
        span = sampler.layer_range
        if len(span) != 2 or not 0 <= span[0] <= span[1] < layers:
            problems.append(
                f"model.text_sampler.layer_range={span} must be [first, last] within layers 0 to {layers - 1}"
            )
        gammas = sampler.gamma_range
        if len(gammas) != 2 or not 0 < gammas[0] <= gammas[1]:
            problems.append(f"model.text_sampler.gamma_range={gammas} must be [low, high] with 0 < low <= high")
    return problems


def _parallel_problems(config: RunConfig, world_size: int) -> list[str]:
    parallel, model, problems = config.parallel, config.model, []
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    if parallel.context_parallel_size != 1:
        problems.append(
            f"parallel.context_parallel_size={parallel.context_parallel_size}: context parallelism splits every sample "
            "over ranks, but each sample drops other tokens, so the shards would fall out of balance and lose their "
            "sample boundaries; set it to 1 and use parallel.sequence_parallel=true for long rows"
        )
    if world_size % (tp * pp):
        problems.append(
            f"{world_size} ranks cannot be divided into parallel.tensor_model_parallel_size={tp} x "
            f"parallel.pipeline_model_parallel_size={pp}; start a multiple of {tp * pp} ranks"
        )
    for key, value in (
        ("model.vision.num_attention_heads", model.vision.num_attention_heads),
        ("model.vision.ffn_hidden_size", model.vision.ffn_hidden_size),
        ("model.language.num_attention_heads", model.language.num_attention_heads),
        ("model.language.ffn_hidden_size", model.language.ffn_hidden_size),
        ("the padded vocabulary (model.language.make_vocab_size_divisible_by)", padded_vocab_size(model)),
    ):
        if value % tp:
            problems.append(f"{key}={value} is not a multiple of parallel.tensor_model_parallel_size={tp}")
    groups = model.language.num_query_groups
    if groups % tp and tp % groups:
        problems.append(
            f"model.language.num_query_groups={groups} and parallel.tensor_model_parallel_size={tp}: "
            "one must be a multiple of the other"
        )
    if parallel.sequence_parallel and tp == 1:
        problems.append("parallel.sequence_parallel=true needs parallel.tensor_model_parallel_size of 2 or more")
    return problems + _pipeline_problems(parallel, model) + _recompute_problems(parallel)


def _pipeline_problems(parallel: ParallelConfig, model: ModelConfig) -> list[str]:
    problems: list[str] = []
    pp, vpp = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if vpp is not None and (pp < 2 or vpp < 2):
        problems.append(
            f"parallel.virtual_pipeline_model_parallel_size={vpp} needs at least 2 chunks and "
            f"parallel.pipeline_model_parallel_size of 2 or more (it is {pp})"
        )
    if parallel.pipeline_model_parallel_layout is None and model.language.num_layers % (pp * (vpp or 1)):
        problems.append(
            f"model.language.num_layers={model.language.num_layers} cannot be divided evenly over {pp} stages x "
            f"{vpp or 1} chunks; give parallel.pipeline_model_parallel_layout"
        )
    layout = parallel.pipeline_model_parallel_layout
    return problems + (_layout_problems(layout, pp * (vpp or 1), model.language.num_layers) if layout else [])


def _layout_problems(layout: str, chunks: int, num_layers: int) -> list[str]:
    """Check Megatron's string: ``E`` embedding, ``t`` layer, ``L`` loss, ``|`` between chunks, ``x*n`` repeats."""
    plain = re.sub(r"[\s,]", "", layout)
    plain = re.sub(r"\(([^()]*)\)\*(\d+)", lambda match: match[1] * int(match[2]), plain)
    plain = re.sub(r"(.)\*(\d+)", lambda match: match[1] * int(match[2]), plain)
    key = f"parallel.pipeline_model_parallel_layout={layout!r}"
    if not re.fullmatch(r"E[t|]*L", plain):
        return [f"{key} must be layers 't' in chunks separated by '|', with one 'E' in front and one 'L' at the end"]
    problems = []
    if plain.count("|") + 1 != chunks:
        problems.append(
            f"{key} has {plain.count('|') + 1} chunks; parallel.pipeline_model_parallel_size x "
            f"parallel.virtual_pipeline_model_parallel_size needs {chunks}"
        )
    if plain.count("t") != num_layers:
        problems.append(f"{key} has {plain.count('t')} layers; model.language.num_layers={num_layers}")
    return problems


def _recompute_problems(parallel: ParallelConfig) -> list[str]:
    granularity, method = parallel.recompute_granularity, parallel.recompute_method
    problems = _one_of("parallel.recompute_granularity", granularity, (None, "selective", "full"))
    if granularity == "full":
        problems += _one_of("parallel.recompute_method", method, ("uniform", "block"))
        if not parallel.recompute_num_layers or parallel.recompute_num_layers < 1:
            problems.append("parallel.recompute_granularity=full needs parallel.recompute_num_layers of 1 or more")
    elif method is not None or parallel.recompute_num_layers is not None:
        problems.append(
            "parallel.recompute_method and parallel.recompute_num_layers belong to "
            f"parallel.recompute_granularity=full, which is {granularity}"
        )
    return problems


def _data_problems(data: DataConfig) -> list[str]:
    problems = _one_of("data.shuffle", data.shuffle, SHUFFLES)
    problems += _one_of("data.packing_estimate", data.packing_estimate, ("running", "baseline"))
    problems += _one_of("data.on_bad_sample", data.on_bad_sample, ("error", "skip"))
    problems += _one_of("data.decoder", data.decoder, ("cpu", "dali"))
    if data.decoder == "dali" and not _installed("nvidia.dali"):
        problems.append("data.decoder=dali needs NVIDIA DALI: pip install -e '.[gpu]', or set data.decoder=cpu")
    if data.cache_gib is not None and data.cache_dir is None:
        problems.append(f"data.cache_gib={data.cache_gib} bounds data.cache_dir, which is not set")
    if data.cache_dir is not None and data.path is not None and "://" not in data.path:
        problems.append(f"data.cache_dir={data.cache_dir} is for a data.path that is a URL, not {data.path}: unset it")
    return problems


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def _training_problems(config: RunConfig) -> list[str]:
    training, optimizer, problems = config.training, config.optimizer, []
    problems += _one_of("training.precision", training.precision, ("bf16", "fp32"))
    problems += _one_of("optimizer.lr_decay_style", optimizer.lr_decay_style, ("cosine", "linear", "constant"))
    problems += _one_of("data.chat_template", config.data.chat_template, TEMPLATE_NAMES)
    problems += _data_problems(config.data)
    if config.model.image.max_image_pixels > MAX_IMAGE_PIXELS:
        problems.append(
            f"model.image.max_image_pixels={config.model.image.max_image_pixels} is more than Pillow opens: "
            f"{MAX_IMAGE_PIXELS} at most"
        )
    if config.data.rows_multiple_of > training.global_batch_size:
        problems.append(
            f"data.rows_multiple_of={config.data.rows_multiple_of} exceeds training.global_batch_size="
            f"{training.global_batch_size}: a row has at least one sample"
        )
    if config.data.max_sequence_length > config.model.language.max_position_embeddings:
        problems.append(
            f"data.max_sequence_length={config.data.max_sequence_length} exceeds "
            f"model.language.max_position_embeddings={config.model.language.max_position_embeddings}"
        )
    for key, modules in (("module_lr", list(optimizer.module_lr)), ("freeze", optimizer.freeze)):
        for module in modules:
            problems += _one_of(f"optimizer.{key} has", module, MODULES)
    for module in config.checkpoint.new_modules:
        problems += _one_of("checkpoint.new_modules has", module, MODULES)
    if config.checkpoint.new_modules and config.checkpoint.pretrained is None:
        problems.append(
            f"checkpoint.new_modules={config.checkpoint.new_modules}, but checkpoint.pretrained names no weights for "
            "the others: set it, or leave both out to train everything from new weights"
        )
    for module in optimizer.freeze:
        if module in optimizer.module_lr:
            problems.append(f"optimizer.freeze and optimizer.module_lr both name {module!r}; keep one")
    if set(MODULES) <= set(optimizer.freeze):
        problems.append("optimizer.freeze names every module, so nothing would be trained")
    if config.model.transformer_impl == "transformer_engine" and training.precision == "fp32":
        problems.append(
            "model.transformer_impl=transformer_engine attends packed rows in bf16 only; set training.precision=bf16, "
            "or model.transformer_impl=local"
        )
    if training.loss_spike_factor is not None and training.loss_spike_factor <= 1:
        problems.append(
            f"training.loss_spike_factor={training.loss_spike_factor} must be above 1: it multiplies the usual loss"
        )
    if training.step_timeout_minutes <= 0:
        problems.append(f"training.step_timeout_minutes={training.step_timeout_minutes} must be above 0")
    if not 0 <= optimizer.lr_warmup_fraction < 1:
        problems.append(f"optimizer.lr_warmup_fraction={optimizer.lr_warmup_fraction} must be in [0, 1)")
    if not 0 <= optimizer.min_lr <= optimizer.lr:
        problems.append(f"optimizer.min_lr={optimizer.min_lr} must be between 0 and optimizer.lr={optimizer.lr}")
    return problems
