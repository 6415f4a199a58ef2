"""When the parameters that each data-parallel rank has updated reach the others, with ``overlap_param_gather``.

Megatron's hooks begin a bucket's all-gather when a module of it runs. Here modules do not run in the same order on all
ranks, since a row of text runs no vision tower, and all-gathers of one group must: so all are begun together, in the
order of the forward pass, and the hooks only wait.
"""

from collections.abc import Iterable, Iterator

from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup


def start_parameter_gather(chunks: Iterable[DistributedDataParallel]) -> None:
    """Begin to gather what the last update changed; before a step's first forward pass (collective)."""
    for group in _overlapping(chunks):
        if not group.param_gather_dispatched:
            group.start_param_sync()


def finish_parameter_gather(chunks: Iterable[DistributedDataParallel]) -> None:
    """Wait for what no module has waited for; after a step's last forward pass."""
    for group in _overlapping(chunks):
        if group.param_gather_handle is not None:
            group.start_param_sync(force_sync=True)


def gather_parameters(chunks: Iterable[DistributedDataParallel]) -> None:
    """Make all replicas equal: before weights are read otherwise than by a step (collective)."""
    for group in _overlapping(chunks):
        if not group.param_gather_dispatched:
            group.start_param_sync(force_sync=True)


def _overlapping(chunks: Iterable[DistributedDataParallel]) -> Iterator[_ParamAndGradBucketGroup]:
    """Groups of buckets in the order of the forward pass; Megatron's own is that of the backward pass."""
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            yield from reversed(chunk.bucket_groups)
