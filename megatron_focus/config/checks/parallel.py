"""What a layout can do with this model and this many ranks."""

import re

from megatron_focus.config.checks.choices import one_of
from megatron_focus.config.pipeline_layout import expanded_layout
from megatron_focus.config.schema import ModelConfig, ParallelConfig, RunConfig


def parallel_problems(config: RunConfig, world_size: int) -> list[str]:
    """One sentence for each thing that the layout cannot do."""
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
        ("the padded vocabulary (model.language.make_vocab_size_divisible_by)", model.language.padded_vocab_size),
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
    return problems + _pipeline_problems(parallel, model) + _recompute_problems(parallel) + _fusion_problems(config)


def _fusion_problems(config: RunConfig) -> list[str]:
    parallel = config.parallel
    needed = {
        "use_distributed_optimizer": parallel.use_distributed_optimizer,
        "overlap_grad_reduce": parallel.overlap_grad_reduce,
    }
    problems = [
        f"parallel.overlap_param_gather=true needs parallel.{name}=true"
        for name, is_set in needed.items()
        if parallel.overlap_param_gather and not is_set
    ]
    implementation = parallel.cross_entropy_fusion_impl
    problems += one_of("parallel.cross_entropy_fusion_impl", implementation, ("native", "te"))
    if implementation != "native" and not parallel.cross_entropy_loss_fusion:
        problems.append(
            f"parallel.cross_entropy_fusion_impl={implementation} belongs to parallel.cross_entropy_loss_fusion=true"
        )
    if parallel.cross_entropy_loss_fusion and implementation == "native" and config.training.precision == "fp32":
        problems.append(
            "parallel.cross_entropy_loss_fusion=true rounds the gradient to bf16; set training.precision=bf16, or "
            "leave the fusion out"
        )
    if parallel.cross_entropy_loss_fusion and config.training.deterministic:
        problems.append(
            "parallel.cross_entropy_loss_fusion=true is not deterministic (Megatron refuses it, too); leave the fusion "
            "out, or set training.deterministic=false"
        )
    return problems


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
    plain = expanded_layout(layout)
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
    problems = one_of("parallel.recompute_granularity", granularity, (None, "selective", "full"))
    if granularity == "full":
        problems += one_of("parallel.recompute_method", method, ("uniform", "block"))
        if not parallel.recompute_num_layers or parallel.recompute_num_layers < 1:
            problems.append("parallel.recompute_granularity=full needs parallel.recompute_num_layers of 1 or more")
    elif method is not None or parallel.recompute_num_layers is not None:
        problems.append(
            "parallel.recompute_method and parallel.recompute_num_layers belong to "
            f"parallel.recompute_granularity=full, which is {granularity}"
        )
    return problems
