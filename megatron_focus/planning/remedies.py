"""What would make a configuration fit; every proposal was planned and does fit."""

from collections.abc import Iterator
from dataclasses import replace

from megatron_focus.config.schema import RunConfig
from megatron_focus.planning.hardware import GPUS, Cluster
from megatron_focus.planning.search import LoadOf, Ranked, search
from megatron_focus.planning.text import layout_name

_MORE_GPUS = (2, 4, 8, 16, 32, 64)


def remedies(config: RunConfig, load_of: LoadOf, cluster: Cluster, ranked: list[Ranked]) -> list[str]:
    """Sentences, each of which alone is enough.

    Args:
        config: what does not fit.
        load_of: the rows of a step under another configuration.
        cluster: on what it does not fit.
        ranked: all layouts of it there.
    """
    if ranked and ranked[0].estimate.fits:
        return [f"another layout: {layout_name(ranked[0].estimate)} (--write-config writes it)"]
    return list(_proposals(config, load_of, cluster))


def _proposals(config: RunConfig, load_of: LoadOf, cluster: Cluster) -> Iterator[str]:
    for factor in _MORE_GPUS:
        found = _fitting(config, load_of, replace(cluster, gpus=factor * cluster.gpus))
        if found:
            yield f"{factor * cluster.gpus} GPUs of the same kind: {found}"
            break
    for gpu in GPUS.values():
        if gpu.memory_gib > cluster.gpu.memory_gib:
            found = _fitting(config, load_of, replace(cluster, gpu=gpu))
            if found:
                yield f"{cluster.gpus} {gpu.name}: {found}"
    if config.data.worst_case_factor > 1:
        shorter = replace(config, data=replace(config.data, worst_case_factor=1.0))
        found = _fitting(shorter, load_of, cluster)
        if found:
            yield f"data.worst_case_factor=1, which packs fewer samples into a row: {found}"


def _fitting(config: RunConfig, load_of: LoadOf, cluster: Cluster) -> str:
    ranked = search(config, load_of, cluster, frugal=True)
    return layout_name(ranked[0].estimate) if ranked and ranked[0].estimate.fits else ""
