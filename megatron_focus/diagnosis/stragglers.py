"""Which nodes are slow. Pure functions over measured speeds."""

from collections.abc import Mapping, Sequence
from statistics import median

from megatron_focus.diagnosis.speed import Speeds
from megatron_focus.diagnosis.verdict import Verdict

SLOW_NETWORK = 5.0
"""GB/s between nodes with GPUs. One adapter of 100 Gbit/s gives twice as much; sockets, which NCCL uses where it finds
no InfiniBand or RoCE, give 1 or 2."""


def slow_network(nodes: Sequence[str], speeds: Sequence[Speeds]) -> str | None:
    """What to say of a network that is slow everywhere, where no node stands out.

    Args:
        nodes: node of each rank, by rank.
        speeds: of each rank; of GPUs.
    """
    whole = min((speed.whole for speed in speeds if speed.whole is not None), default=None)
    if whole is None or whole >= SLOW_NETWORK or len(set(nodes)) == 1:
        return None
    return (
        f"all-reduce of the whole job {whole:.2f} GB/s: does NCCL use InfiniBand or RoCE? NCCL_DEBUG=INFO says what it "
        "finds, NCCL_IB_HCA names the adapters"
    )


def judge_speeds(
    verdict: Verdict,
    nodes: Sequence[str],
    speeds: Sequence[Speeds],
    min_share: float | None,
    min_bandwidth: float | None,
) -> None:
    """Name slow GPUs, nodes and links.

    Args:
        verdict: where problems are added.
        nodes: node of each rank, by rank.
        speeds: of each rank.
        min_share: least share of the median; None does not compare.
        min_bandwidth: least all-reduce bandwidth of the job and of pairs of nodes in GB/s; None: any. A single link
            below it is a problem; one that is only slower than the others is worth a warning.
    """
    whole = min((speed.whole for speed in speeds if speed.whole is not None), default=None)
    if min_bandwidth is not None and whole is not None and whole < min_bandwidth:
        verdict.problem("", f"all-reduce of the whole job {whole:.2f} GB/s, at least {min_bandwidth:g} wanted")
    links = slowest_by_link(nodes, speeds)
    if min_share is None:
        if min_bandwidth is not None:
            _links(verdict, links, min_bandwidth, min_bandwidth)
        return
    tflops = {rank: speed.tflops for rank, speed in enumerate(speeds)}
    for rank in slow(tflops, min_share):
        verdict.problem(nodes[rank], _said(f"rank {rank} computes", tflops[rank], median(tflops.values()), "TFLOP/s"))
    within = {node: min(s.within or 0.0 for n, s in zip(nodes, speeds, strict=True) if n == node) for node in nodes}
    within = {node: bandwidth for node, bandwidth in within.items() if bandwidth > 0}
    for node in slow(within, min_share):
        verdict.problem(node, _said("all-reduce within the node", within[node], median(within.values()), "GB/s"))
    if links:
        usual = median(best_link(links).values())
        _links(verdict, links, max(min_share * usual, min_bandwidth or 0.0), min_bandwidth)


def slow(values: Mapping, min_share: float) -> list:
    """Keys whose value is below ``min_share`` of the median."""
    if not values:
        return []
    usual = median(values.values())
    return [key for key, value in values.items() if value < min_share * usual]


def slowest_by_link(nodes: Sequence[str], speeds: Sequence[Speeds]) -> dict[tuple[str, str], float]:
    """Pair of nodes -> bandwidth of the rank that saw the least."""
    links: dict[tuple[str, str], float] = {}
    for node, speed in zip(nodes, speeds, strict=True):
        for partner, bandwidth in speed.pairs.items():
            link = (min(node, partner), max(node, partner))
            links[link] = min(links.get(link, bandwidth), bandwidth)
    return links


def best_link(links: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Node -> the better of its links: a slow partner does not make it slow."""
    best: dict[str, float] = {}
    for link, bandwidth in links.items():
        for node in link:
            best[node] = max(best.get(node, 0.0), bandwidth)
    return best


def _links(verdict: Verdict, links: Mapping[tuple[str, str], float], least: float, min_bandwidth: float | None) -> None:
    """Name nodes that are slow with every partner; a slow link between two that are not is a matter of the link.

    Links of a healthy network may well differ: through an oversubscribed switch some are slower than others.
    """
    best = best_link(links)
    bad = {node for node, bandwidth in best.items() if bandwidth < least}
    for node in sorted(bad):
        of_node = {(set(link) - {node}).pop(): bandwidth for link, bandwidth in links.items() if node in link}
        seen = " and ".join(f"{bandwidth:.2f} GB/s with {partner}" for partner, bandwidth in sorted(of_node.items()))
        verdict.problem(node, f"all-reduce {seen}, at least {least:.2f} expected")
    for (first, second), bandwidth in sorted(links.items()):
        if bandwidth < least and not bad & {first, second}:
            add = verdict.problem if min_bandwidth is not None and bandwidth < min_bandwidth else verdict.warning
            for node, partner in ((first, second), (second, first)):
                add(node, f"link with {partner} {bandwidth:.2f} GB/s, at least {least:.2f} expected")


def _said(what: str, value: float, usual: float, unit: str) -> str:
    return f"{what} {value:.2f} {unit}, {value / usual:.0%} of the median"
