"""What rank 0 prints: a table for each node, and one line for all."""

from collections import Counter
from collections.abc import Iterator

from megatron_focus.diagnosis.preflight import GOOD, Outcome
from megatron_focus.diagnosis.rank_facts import RankFacts
from megatron_focus.diagnosis.speed import Speeds
from megatron_focus.diagnosis.verdict import ranges

_VERSIONS = ("python", "torch", "megatron-core", "transformer-engine", "NCCL", "driver", "project code")


def report(outcome: Outcome) -> str:
    """All tables; without the last line."""
    if outcome.configuration_error is not None:
        return outcome.configuration_error
    lines: list[str] = []
    for node in dict.fromkeys(rank.node for rank in outcome.facts):
        lines += [*_node(outcome, node), ""]
    whole = [speed.whole for speed in outcome.speeds if speed.whole is not None]
    if whole:
        lines.append(f"all-reduce of the whole job: {min(whole):.2f} GB/s")
    elif not outcome.speeds and outcome.facts:
        lines.append("speeds were not measured: the ranks' libraries or GPUs do not go together")
    if outcome.speeds and not all(rank.gpu for rank in outcome.facts):
        lines.append("without GPUs, speeds are compared only where --min-share asks for it")
    lines += [f"warning: {message}" for message in outcome.verdict.warnings.get("", [])]
    return "\n".join(lines)


def summary(outcome: Outcome) -> str:
    """``preflight: 8 nodes, 64 GPUs, all good (12.3 s)``, or what is wrong."""
    if outcome.configuration_error is not None:
        return "preflight: the configuration cannot run"
    if outcome.exit_code != GOOD:
        return f"preflight: {outcome.verdict.line()}"
    nodes, count = len({rank.node for rank in outcome.facts}), len(outcome.facts)
    what = "GPU" if all(rank.gpu for rank in outcome.facts) else "process without a GPU"
    plural = {"GPU": "GPUs", "process without a GPU": "processes without GPUs"}[what]
    ranks = f"{count} {what if count == 1 else plural}"
    return f"preflight: {nodes} node{'' if nodes == 1 else 's'}, {ranks}, all good ({outcome.seconds:.1f} s)"


def _node(outcome: Outcome, node: str) -> Iterator[str]:
    ranks = [rank for rank in outcome.facts if rank.node == node]
    yield f"{node} (ranks {ranges([rank.rank for rank in ranks])})"
    gpus = Counter(f"{rank.gpu['name']}, {rank.gpu['GiB']} GiB" for rank in ranks if rank.gpu)
    yield _row("GPUs", "; ".join(f"{count} x {gpu}" for gpu, count in gpus.items()) or "none")
    same = ranks[0].same
    yield _row("versions", ", ".join(f"{key} {same[key]}" for key in _VERSIONS if key in same))
    for key, text in {k: v for rank in ranks for k, v in rank.shown.items()}.items():
        yield _row(key, text)
    yield _row("clock", f"{outcome.clocks[ranks[0].rank]:+.3f} s from rank 0's")
    if outcome.speeds:
        yield from _speeds(ranks, outcome.speeds)
    for message in outcome.verdict.problems.get(node, []):
        yield _row("PROBLEM", message)
    for message in outcome.verdict.warnings.get(node, []):
        yield _row("warning", message)


def _speeds(ranks: list[RankFacts], speeds: list[Speeds]) -> Iterator[str]:
    own = [speeds[rank.rank] for rank in ranks]
    tflops = [speed.tflops for speed in own]
    yield _row("matrix products", f"{min(tflops):.2f} to {max(tflops):.2f} TFLOP/s a rank")
    seen = [f"{min(s.within or 0.0 for s in own):.2f} within the node"] if len(own) > 1 else []
    seen += [f"{min(s.pairs[partner] for s in own):.2f} with {partner}" for partner in own[0].pairs]
    if seen:
        yield _row("all-reduce, GB/s", ", ".join(seen))


def _row(key: str, text: str) -> str:
    return f"  {key:<24} {text}"
