"""A plan as text and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from megatron_focus.planning.attention import attention_on
from megatron_focus.planning.balance import layer_costs
from megatron_focus.planning.chunks import chunks_of, even_sizes, layout_string
from megatron_focus.planning.estimate import Estimate
from megatron_focus.planning.hardware import GIB, Cluster
from megatron_focus.planning.parameters import chunk_parameters
from megatron_focus.planning.search import PARTS, Ranked, overrides
from megatron_focus.planning.text import gib, layout_name, table
from megatron_focus.planning.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is said."""

    title: str
    cluster: Cluster
    load: Workload
    own: Estimate | None
    """The layout that the configuration has; None where it cannot run on so many GPUs."""
    refused: str | None
    """Why it cannot."""
    ranked: list[Ranked]
    remedies: list[str]
    """Where the layout that is shown does not fit."""
    missing: list[str]
    """What this machine lacks of what the cluster must have."""

    @property
    def shown(self) -> Estimate:
        """Its own layout, or else the best."""
        return self.own or self.ranked[0].estimate


def report(plan: Plan, top: int) -> str:
    """The text."""
    whose = "The configuration's own" if plan.own is not None else "The best"
    lines = [
        f"{plan.title} on {plan.cluster.gpus} x {plan.cluster.gpu.name}, {plan.cluster.node_size} a node",
        *_load_lines(plan),
        f"  attention: {attention_on(plan.shown.config, plan.cluster).words}",
        "",
        *([f"With its own layout, {plan.refused}", ""] if plan.refused is not None else []),
        f"{whose} layout: {layout_name(plan.shown)}",
        *estimate_lines(plan.shown, plan.cluster),
    ]
    if not plan.shown.fits:
        stage = plan.shown.memory[plan.shown.fullest]
        lines += [f"  DOES NOT FIT: {gib(stage.total)} of {gib(plan.shown.memory_limit)} GiB. It would fit with"]
        lines += [f"    {remedy}" for remedy in plan.remedies] or ["    nothing that was tried"]
    lines += ["", *_ranking_lines(plan, top)]
    lines += ["", "Assumed, not measured:", *(f"  {line}" for line in plan.cluster.assumptions.lines())]
    lines += [f"  lengths: {plan.load.source}"]
    lines += [f"  it could not run on this machine: {missing}" for missing in plan.missing]
    return "\n".join(lines)


def estimate_lines(found: Estimate, cluster: Cluster) -> list[str]:
    """Stages, time, messages and split of one layout."""
    pp = found.config.parallel.pipeline_model_parallel_size
    rows = []
    for stage, memory in enumerate(found.memory):
        rows.append(
            [
                f"stage {stage}",
                "+".join(str(size) for size in found.sizes[stage::pp]),
                gib(memory.parameters),
                gib(memory.gradients),
                gib(memory.optimizer),
                gib(memory.activations),
                gib(memory.expected_activations),
                gib(memory.margin),
                gib(memory.total),
                f"{found.stage_seconds[stage] * 1e3:.0f}",
            ]
        )
    header = [
        "GiB a rank",
        "layers",
        "param",
        "grad",
        "optim",
        "activations",
        "(mean row)",
        "margin",
        "total",
        "ms a row",
    ]
    time = found.time
    parts = [f"useful {time.useful:.2f}"]
    lost = {words: getattr(time, part) for part, words in PARTS.items() if part != "useful"}
    parts += [f"{words} {seconds:.2f}" for words, seconds in lost.items() if seconds >= 0.005]
    sent = found.messages
    return [
        *table(header, rows),
        f"  step {time.total:.2f} s, MFU {found.mfu:.1%}, {found.flops / 1e15:.2f} PFLOP executed "
        f"({found.model_flops / 1e15:.2f} of the model); {found.rows_per_replica} rows a replica",
        f"  seconds: {', '.join(parts)}",
        f"  a rank sends in a step, GB: TP {sent.tensor_parallel / 1e9:.1f}, PP {sent.pipeline / 1e9:.2f}, "
        f"DP {sent.data_parallel / 1e9:.1f}",
        *_balance_lines(found, cluster),
    ]


def _balance_lines(found: Estimate, cluster: Cluster) -> list[str]:
    pp = found.config.parallel.pipeline_model_parallel_size
    if pp == 1:
        return []
    even = even_sizes(found.config.model.language.num_layers, len(found.sizes))
    costs = layer_costs(found.config, found.mean_row, cluster)
    slowest, before = max(costs.stages(found.sizes, pp)), max(costs.stages(even, pp))
    return [
        f"  split {layout_string(found.sizes)}: slowest stage {slowest * 1e3:.0f} ms a row; "
        f"even split {before * 1e3:.0f} ms, {before / slowest - 1:+.1%}"
    ]


def _load_lines(plan: Plan) -> list[str]:
    mean, worst = plan.load.mean, plan.load.worst
    model = plan.shown.config.model
    whole = plan.shown.config.parallel
    chunk = chunks_of([model.language.num_layers])[0]
    single = type(whole)(tensor_model_parallel_size=1)
    count = sum(sum(sizes) for sizes in chunk_parameters(model, single, chunk).values())
    last = mean.layers[-1].tokens
    return [
        f"  {count / 1e9:.2f} B parameters; {plan.load.rows:.1f} rows a step of {mean.samples:.1f} samples, "
        f"{mean.tiles:.0f} tiles",
        f"  a row: {mean.tokens:,.0f} tokens enter the language model, {last:,.0f} are left after the drops; at worst "
        f"{worst.layers[0].tokens:,.0f} and {worst.tiles:.0f} tiles, which is what the memory must hold",
    ]


def _ranking_lines(plan: Plan, top: int) -> list[str]:
    if not plan.ranked:
        return ["No other layout passes the checks of the configuration."]
    shown, others = plan.ranked[:top], plan.ranked[top:]
    rows = []
    for place, each in enumerate(shown, start=1):
        found = each.estimate
        rows.append(
            [
                f"{place}. {layout_name(found)}",
                f"{found.time.total:.2f}",
                f"{found.mfu:.1%}",
                gib(found.memory[found.fullest].total),
                each.reason or "best",
            ]
        )
    lines = ["Best layouts:", *table(["", "s/step", "MFU", "GiB", ""], rows)]
    best = plan.ranked[0].estimate
    if best.fits and len(best.sizes) > 1:
        lines.append(f"  layout of the first: {layout_string(best.sizes)}")
    if others:
        lines += ["", "The others, and why they lose:"]
        lines += [f"  {layout_name(each.estimate)}: {each.reason}" for each in others]
    return lines


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: bytes, seconds, FLOPs."""
    return {
        "title": plan.title,
        "gpus": plan.cluster.gpus,
        "gpu": asdict(plan.cluster.gpu),
        "node_size": plan.cluster.node_size,
        "assumptions": asdict(plan.cluster.assumptions),
        "attention": attention_on(plan.shown.config, plan.cluster).words,
        "workload": asdict(plan.load),
        "own": estimate_json(plan.own) if plan.own is not None else None,
        "refused": plan.refused,
        "ranked": [{"reason": each.reason, **estimate_json(each.estimate)} for each in plan.ranked],
        "remedies": plan.remedies,
        "not_installed_here": plan.missing,
    }


def estimate_json(found: Estimate) -> dict[str, Any]:
    """One layout."""
    return {
        "layout": layout_name(found),
        "overrides": overrides(found),
        "sizes": list(found.sizes),
        "data_parallel_size": found.data_parallel_size,
        "rows_a_replica": found.rows_per_replica,
        "fits": found.fits,
        "memory_limit_gib": found.memory_limit / GIB,
        "memory": [asdict(memory) | {"total": memory.total} for memory in found.memory],
        "stage_seconds": list(found.stage_seconds),
        "time": asdict(found.time) | {"total": found.time.total},
        "messages": asdict(found.messages),
        "flops": found.flops,
        "model_flops": found.model_flops,
        "mfu": found.mfu,
    }
