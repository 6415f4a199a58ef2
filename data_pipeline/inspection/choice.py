"""Chooses the samples to look at."""

import numpy as np

from data_pipeline.dataset.manifest import Manifest


def choose_samples(manifest: Manifest, number: int, seed: int) -> list[int]:
    """Random samples, as many of each source as there are (a source without enough gives all that it has).

    Args:
        manifest: the data set.
        number: samples to choose; all where there are fewer.
        seed: the same seed chooses the same samples.

    Returns:
        Indices into the manifest, source after source.
    """
    random = np.random.default_rng(seed)
    keys = random.random(len(manifest))
    order = np.lexsort((keys, manifest.source))  # by source, in random order within each
    first = np.searchsorted(manifest.source[order], np.arange(len(manifest.source_names)))
    rank = np.arange(len(manifest)) - first[manifest.source[order]]
    # The first of every source, then the second of every source and so on; sources in random order.
    turn = random.permutation(len(manifest.source_names))[manifest.source[order]]
    chosen = order[np.lexsort((turn, rank))[:number]]
    return chosen[np.lexsort((chosen, manifest.source[chosen]))].tolist()
