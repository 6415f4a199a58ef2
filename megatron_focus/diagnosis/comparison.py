"""Which nodes differ from the majority. Pure functions over the ranks' facts."""

from collections import Counter
from collections.abc import Mapping, Sequence

from megatron_focus.diagnosis.rank_facts import RankFacts
from megatron_focus.diagnosis.verdict import Verdict, ranges

NOT_SAID = "not set"
# Names of network interfaces, files and hosts may well differ between machines that work.
_MAY_DIFFER = ("_SOCKET_IFNAME", "_IB_HCA", "_NET_DEVICES", "_IFACE", "_FILE", "_DIR", "_HOSTID")
# So may drivers, while a cluster is upgraded node by node; one that cannot run torch's CUDA fails by itself.
_DRIVER = "driver"
_DECIDE_SPEED = ("device", "torch", "NCCL")


def compare(facts: Sequence[RankFacts]) -> Verdict:
    """Everything that differs between ranks, said of the nodes that are in the minority."""
    verdict = Verdict()
    for rank in facts:
        for message in rank.problems:
            verdict.problem(rank.node, message)
        for message in rank.warnings:
            verdict.warning(rank.node, message)
    _files(facts, verdict)
    for key in sorted({key for rank in facts for key in rank.same}):
        # What one process of a node says for all of it is compared between those.
        speakers = facts if _said_by_all(key, facts) else [rank for rank in facts if rank.local_rank == 0]
        # A variable may be missing; where anything else is, or everything, a problem says why already.
        speakers = [rank for rank in speakers if (rank.same if key.startswith("$") else key in rank.same)]
        values = {rank.rank: rank.same.get(key, NOT_SAID) for rank in speakers}
        may_differ = key == _DRIVER or (key.startswith("$") and key.endswith(_MAY_DIFFER))
        add = verdict.warning if may_differ else verdict.problem
        for node, message in differing(key, values, {rank.rank: rank.node for rank in facts}).items():
            add(node, message)
    _same_gpu(facts, verdict)
    _processes(facts, verdict)
    return verdict


def differing(key: str, values: Mapping[int, str], nodes: Mapping[int, str]) -> dict[str, str]:
    """Node -> what is different there from the majority; without a majority every node is named.

    Args:
        key: what is compared.
        values: rank -> value.
        nodes: rank -> node.
    """
    counts = Counter(values.values()).most_common()
    if len(counts) == 1:
        return {}
    usual = counts[0][0] if counts[0][1] > counts[1][1] else None
    found: dict[str, str] = {}
    for node in dict.fromkeys(nodes[rank] for rank in values):
        here = [rank for rank in values if nodes[rank] == node]
        wrong = [rank for rank in here if values[rank] != usual]
        if not wrong:
            continue
        which = "" if wrong == here else f" (rank {ranges(wrong)})"
        others = f", elsewhere {usual}" if usual is not None else " and not the same on all nodes"
        found[node] = f"{key} is {' and '.join(sorted({values[rank] for rank in wrong}))}{which}{others}"
    return found


def speed_can_be_measured(facts: Sequence[RankFacts]) -> bool:
    """Whether collectives can be expected to work: the same libraries, and a GPU for each rank."""
    same = all(len({rank.same.get(key) for rank in facts}) == 1 for key in _DECIDE_SPEED)
    gpus = [(rank.node, rank.gpu["uuid"]) for rank in facts if rank.gpu]
    needed = len(facts) if any(rank.same.get("device") == "cuda" for rank in facts) else 0
    return same and len(set(gpus)) == len(gpus) >= needed


def _said_by_all(key: str, facts: Sequence[RankFacts]) -> bool:
    return any(key in rank.same for rank in facts if rank.local_rank != 0)


def _files(facts: Sequence[RankFacts], verdict: Verdict) -> None:
    nodes = {rank.node for rank in facts}
    seen: dict[str, list[str]] = {}
    for rank in facts:
        for message in (*rank.files, *rank.storage):
            seen.setdefault(message, []).append(rank.node)
    may_pass = {message for rank in facts for message in rank.storage}
    for message, where in seen.items():
        if set(where) == nodes and message in may_pass:
            verdict.problem("", f"all nodes: {message}")
        elif set(where) == nodes:
            verdict.everywhere.append(message)
        else:
            for node in where:
                verdict.problem(node, message)


def _same_gpu(facts: Sequence[RankFacts], verdict: Verdict) -> None:
    users: dict[tuple[str, str], list[int]] = {}
    for rank in facts:
        if rank.gpu:
            users.setdefault((rank.node, rank.gpu["uuid"]), []).append(rank.rank)
    for (node, _), ranks in users.items():
        if len(ranks) > 1:
            verdict.problem(node, f"ranks {ranges(ranks)} use the same GPU")


def _processes(facts: Sequence[RankFacts], verdict: Verdict) -> None:
    per_node = Counter(rank.node for rank in facts)
    usual = Counter(per_node.values()).most_common(1)[0][0]
    for node, count in per_node.items():
        if count != usual:
            verdict.problem(node, f"{count} processes, elsewhere {usual}")
