"""The plan against what this project's own objects really allocate, save and compute (local layers, CPU).

Transformer Engine's formulas are not measured anywhere: that needs a GPU.
"""

from dataclasses import replace

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from torch.utils.flop_counter import FlopCounterMode

from megatron_focus.config.schema import ModelConfig, RunConfig
from megatron_focus.models.focus_llava import RowInputs, StageOutput
from megatron_focus.planning.chunks import chunks_of, configured_sizes, of_stage
from megatron_focus.planning.memory import saved_bytes
from megatron_focus.planning.parameters import chunk_bytes, chunk_parameters
from megatron_focus.planning.work import Work, chunk_work, recompute_work
from megatron_focus.planning.workload import LayerLoad, RowLoad
from megatron_focus.samplers.draws import draw
from megatron_focus.training.batch import row_plan
from tests.distributed.harness import run_ranks
from tests.distributed.workers import configure, start
from tests.tiny import make_row, tiny_model

FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
RECOMPUTE = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": FULL,
    "full, groups of 3": FULL | {"recompute_num_layers": 3},
    "block of 3": FULL | {"recompute_method": "block", "recompute_num_layers": 3},
}
IMAGES = [[(100, 80)], [(60, 200), (57, 57)], [(112, 112)], []]


def medium_model(**language) -> ModelConfig:
    """Wide enough that indices of 8 bytes do not weigh more than they would in a real model."""
    return tiny_model(**{"hidden_size": 128, "ffn_hidden_size": 320} | language)


# ---- what a rank keeps between steps


def allocated(names: list[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """(real, planned) bytes of this rank, by layout; the layouts one after the other in one process."""
    found = {}
    for name in names:
        found[name] = _allocated(_static_config(name))
        parallel_state.destroy_model_parallel()
    return found


def _static_config(name: str) -> RunConfig:
    _, parallel, precision, language, optimizer = LAYOUTS[name]
    return configure(medium_model(**language), parallel, {"precision": precision}, **optimizer)


def _allocated(config: RunConfig) -> dict[str, tuple[float, float]]:
    _, parts = start(config)
    storages = [p.untyped_storage() for chunk in parts.chunks for p in chunk.parameters()]
    parameters = {storage.data_ptr(): storage.nbytes() for storage in storages}
    gradients = {b.grad_data.data_ptr(): b.grad_data.nbytes for c in parts.chunks for b in c.buffers}
    for chunk in parts.chunks:
        for parameter in chunk.parameters():
            if parameter.requires_grad:
                parameter.main_grad.zero_()
    parts.optimizer.step()
    state = {}
    for optimizer in getattr(parts.optimizer, "chained_optimizers", [parts.optimizer]):
        for group in optimizer.optimizer.param_groups:
            for parameter in group["params"]:
                tensors = [parameter, *optimizer.optimizer.state[parameter].values()]
                for tensor in tensors:
                    if isinstance(tensor, torch.Tensor) and tensor.numel() > 1:
                        key = tensor.untyped_storage().data_ptr()
                        if key not in parameters:
                            state[key] = tensor.untyped_storage().nbytes()
    stage = parallel_state.get_pipeline_model_parallel_rank()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    own = of_stage(chunks_of(configured_sizes(config.model, config.parallel)), stage, stages)
    replicas = parallel_state.get_data_parallel_world_size()
    kept = [chunk_bytes(config, chunk, replicas) for chunk in own]
    elements = sum(p.numel() for c in parts.chunks for p in c.parameters())
    counted = sum(sum(s) for c in own for s in chunk_parameters(config.model, config.parallel, c).values())
    return {
        "elements": (elements, counted),
        "parameters": (sum(parameters.values()), sum(k.parameters for k in kept)),
        "gradients": (sum(gradients.values()), sum(k.gradients for k in kept)),
        "optimizer": (sum(state.values()), sum(k.optimizer for k in kept)),
    }


PP2 = {"pipeline_model_parallel_size": 2}
LAYOUTS = {
    "one rank, bf16": (1, {}, "bf16", {}, {}),
    "one rank, fp32": (1, {}, "fp32", {}, {}),
    "frozen tower": (1, {}, "bf16", {}, {"freeze": ["vision_tower"]}),
    "TP 2": (2, {"tensor_model_parallel_size": 2}, "bf16", {}, {}),
    "DP 2": (2, {}, "bf16", {}, {}),
    "DP 2, optimizer not sharded": (2, {"use_distributed_optimizer": False}, "bf16", {}, {}),
    "PP 2, uneven": (2, PP2 | {"pipeline_model_parallel_layout": "Et*3|t*5L"}, "bf16", {}, {}),
    "PP 2, VPP 2": (2, PP2 | {"virtual_pipeline_model_parallel_size": 2}, "bf16", {}, {}),
    "PP 2, tied, biased": (
        2,
        PP2,
        "fp32",
        {"share_embeddings_and_output_weights": True, "add_qkv_bias": True, "architecture": "qwen2"},
        {},
    ),
}


@pytest.fixture(scope="module")
def allocations() -> dict[str, list[dict[str, tuple[float, float]]]]:
    """What every rank found, by layout."""
    found: dict[str, list] = {}
    for world in (1, 2):
        names = [name for name, layout in LAYOUTS.items() if layout[0] == world]
        of_ranks = run_ranks(allocated, world, names, timeout=300)
        found |= {name: [rank[name] for rank in of_ranks] for name in names}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_parameter_gradient_and_optimizer_bytes_are_those_of_the_trainer(name, allocations):
    for rank in allocations[name]:
        real, planned = rank["elements"]
        assert real == planned
        for part in ("parameters", "gradients", "optimizer"):
            real, planned = rank[part]
            # Measured: 0.11 %, the optimizer's share of the elements that alignment leaves empty.
            assert planned == pytest.approx(real, rel=0.02), part


# ---- what autograd keeps of a microbatch


def on_a_rank(function: str, configs: dict[str, RunConfig]) -> dict[str, dict[str, float]]:
    """``function`` of this module for each configuration, in one process."""
    found = {}
    for name, config in configs.items():
        found[name] = globals()[function](config)
        parallel_state.destroy_model_parallel()
    return found


def one_row(config: RunConfig) -> tuple[torch.nn.Module, RowInputs]:
    _, parts = start(config)
    model = unwrap_model(parts.chunks[0])
    row = make_row(1, IMAGES)
    draws = draw(config.model.text_sampler, row, seed=1, step=0, training=True)
    plan = row_plan(config.model, row)
    return model.train(), RowInputs(
        row=row, plan=plan, draws=draws, balance_coefficient=0.1, loss_tokens=row.loss_tokens
    )


def load_of(inputs: RowInputs, result: StageOutput) -> RowLoad:
    """What was really run."""
    layers = []
    for count, lengths in result.decoder.segments:
        load = LayerLoad(tokens=sum(lengths), squares=sum(length**2 for length in lengths))
        layers += [load] * count
    images, row = inputs.plan.num_images, inputs.row
    fused = result.visual
    assert fused is not None
    # Every sample with an image drops once, in some layer.
    of_image = fused.lengths.tolist()
    counts = [len(images) for images in IMAGES]
    visual = [sum(of_image[sum(counts[:i]) : sum(counts[: i + 1])]) for i in range(len(counts))]
    newlines = [int(fused.newline[fused.image == i].sum()) for i in range(len(of_image))]
    scored = [v - sum(newlines[sum(counts[:i]) : sum(counts[: i + 1])]) for i, v in enumerate(visual)]
    sample_of = torch.arange(len(counts)).repeat_interleave(row.cu_seqlens.diff().long())
    asking = torch.bincount(sample_of[row.user_turn >= 0], minlength=len(counts)).tolist()
    return RowLoad(
        samples=row.num_samples,
        text=len(row.tokens) - images,
        visual=len(fused.tokens),
        tiles=len(row.tiles),
        labels=inputs.loss_tokens,
        layers=tuple(layers),
        selection_tokens=sum(a + v for a, v in zip(asking, scored, strict=True) if a and v),
        selection_pairs=sum(a * v for a, v in zip(asking, scored, strict=True)),
    )


def kept_by_autograd(config: RunConfig) -> dict[str, float]:
    """Real and planned bytes saved for the backward pass: unique storages, parameters left out."""
    model, inputs = one_row(config)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = model(inputs)
    real = sum(storage.nbytes() for storage in storages.values())
    (chunk,) = chunks_of([config.model.language.num_layers])
    return {"real": real, "planned": saved_bytes(config, chunk, load_of(inputs, result))}


def _kept_configs() -> dict[str, RunConfig]:
    model = medium_model()
    no_vision = replace(model, vision_sampler=replace(model.vision_sampler, enabled=False))
    no_text = replace(model, text_sampler=replace(model.text_sampler, mode="off"))
    return {
        f"{name}, {precision}": configure(model, parallel, {"precision": precision})
        for name, parallel in RECOMPUTE.items()
        for precision in ("fp32", "bf16")
    } | {
        "no vision sampler": configure(no_vision),
        "no text sampler": configure(no_text),
        "frozen tower": configure(model, freeze=["vision_tower"]),
        "one key group": configure(medium_model(num_query_groups=1), RECOMPUTE["selective"]),
    }


@pytest.fixture(scope="module")
def kept() -> dict[str, dict[str, float]]:
    return run_ranks(on_a_rank, 1, "kept_by_autograd", _kept_configs(), timeout=300)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", _kept_configs())
def test_saved_activations_are_those_of_a_real_forward_pass(name, kept):
    # Measured: below 0.4 %; 5.3 % too low where drops split recomputed groups of several layers, which then are more.
    assert kept[name]["planned"] == pytest.approx(kept[name]["real"], rel=0.1)


TP2 = {"tensor_model_parallel_size": 2}
SHARDED = {
    "TP 2": TP2,
    "TP 2, SP": TP2 | {"sequence_parallel": True},
    "TP 2, SP, full": TP2 | {"sequence_parallel": True} | FULL,
}


@pytest.mark.slow
def test_saved_activations_shrink_on_tensor_parallel_ranks_as_planned():
    configs = {name: configure(medium_model(), parallel) for name, parallel in SHARDED.items()}
    for rank in run_ranks(on_a_rank, 2, "kept_by_autograd", configs, timeout=300):
        for name, seen in rank.items():
            assert seen["planned"] == pytest.approx(seen["real"], rel=0.1), name


# ---- what is computed


def counted(config: RunConfig) -> dict[str, float]:
    """FLOPs of one row, forward and backward, as torch's counter sees them and as planned."""
    attention = {"forward": 0.0, "backward": 0.0}

    def product(query: torch.Size) -> float:
        batch, heads, length, size = query
        # The tower attends to everything, the decoder causally: torch's convention counts the whole square either way.
        return 2.0 * batch * heads * length * length * size * (0.5 if batch == 1 else 1.0)

    def forward(query, *rest, out_shape=None, **named):
        attention["forward"] += 2 * product(query)
        return 0

    def backward(grad, query, *rest, out_shape=None, **named):
        attention["backward"] += 5 * product(query)  # the scores once more, and four products of their size
        return 0

    ops = torch.ops.aten
    mapping = {
        ops._scaled_dot_product_flash_attention_for_cpu: forward,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    model, inputs = one_row(config)
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        result = model(inputs)
        result.output.sum().backward()
    (chunk,) = chunks_of([config.model.language.num_layers])
    load = load_of(inputs, result)
    work: Work = chunk_work(config, chunk, load) + recompute_work(config, chunk, load)
    return {
        "matmul": counter.get_total_flops(),
        "planned matmul": work.matmul,
        "attention": sum(attention.values()),
        "planned attention": work.attention,
    }


def _counted_configs() -> dict[str, RunConfig]:
    configs = {name: configure(medium_model(), parallel) for name, parallel in RECOMPUTE.items()}
    return configs | {"frozen tower": configure(medium_model(), freeze=["vision_tower"])}


@pytest.fixture(scope="module")
def counts() -> dict[str, dict[str, float]]:
    return run_ranks(on_a_rank, 1, "counted", _counted_configs(), timeout=300)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", _counted_configs())
def test_planned_flops_are_those_of_a_counted_run(name, counts):
    """Torch has no formula for the CPU's fused attention, so it is counted by its own calls, causal ones by half."""
    seen = counts[name]
    assert seen["attention"] > 0
    # Measured: equal; 0.24 % too low with a frozen tower.
    assert seen["planned attention"] == pytest.approx(seen["attention"], rel=0.03)
    assert seen["planned matmul"] == pytest.approx(seen["matmul"], rel=0.03)
