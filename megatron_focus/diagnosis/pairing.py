"""Which nodes are measured together, so that a slow one shows in two measurements with different partners."""

from collections.abc import Sequence


def shifts(nodes: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Neighbours on a ring, in rounds of disjoint pairs that run at the same time.

    Every node is in two pairs. An even number of nodes takes two rounds; an odd one a third, for the pair that closes
    the ring. Fewer than three nodes make no ring: their only pair is the whole job.
    """
    count = len(nodes)
    if count < 3:
        return []
    ring = [(nodes[i], nodes[(i + 1) % count]) for i in range(count)]
    if count % 2 == 0:
        return [ring[0::2], ring[1::2]]
    return [ring[0:-1:2], ring[1:-1:2], ring[-1:]]
