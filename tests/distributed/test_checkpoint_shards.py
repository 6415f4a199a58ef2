"""What each rank holds and writes of a checkpoint, and that the stored tensors do not depend on the layout."""

import os
import re
from pathlib import Path

import pytest
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import distrib_optimizer

from megatron_focus.checkpoint import state
from megatron_focus.checkpoint.saver import CheckpointSaver
from megatron_focus.checkpoint.state import TrainState, load_checkpoint, load_weights, start_checkpoint
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import dump_config
from megatron_focus.observability.metrics import StepRecorder
from megatron_focus.training.batch import StepFeeder
from megatron_focus.training.step import train_step
from megatron_focus.training.step_guard import StepGuard
from tests.distributed.harness import run_ranks
from tests.distributed.workers import ROWS, configure, save_initial_weights, start, step_batch
from tests.tiny import make_row

SP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2}
ELSEWHERE = {
    "pp2 vpp2 dp2": (4, PP2 | {"virtual_pipeline_model_parallel_size": 2}),
    "tp2 pp2": (4, SP2 | PP2),
    "dp3": (3, {}),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    run_ranks(save_initial_weights, 1, configure(), str(folder))
    return str(folder)


def stepped(config, weights):
    """Everything that is trained, after one step."""
    device, parts = start(config)
    load_weights(CheckpointStore(weights).latest(), parts)
    mine = ROWS[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]
    steps = iter([step_batch([make_row(i, images) for i, images in enumerate(mine)])])
    feeder = StepFeeder(config, steps if StepFeeder.reads_data() else None, pad_token_id=249, device=device)
    recorder = StepRecorder(config.model, config.data.max_sequence_length)
    inputs = feeder.next_step(0)
    train_step(parts.chunks, parts.optimizer, parts.scheduler, inputs, recorder, device, StepGuard())
    return parts


def saved(parts, folder, config):
    saver = CheckpointSaver(CheckpointStore(folder), keep_last=0)
    start_checkpoint(saver, parts, TrainState(iteration=1), dump_config(config))
    return saver.wait()


def save_and_measure(config, weights, folder):
    """(bytes of this rank's optimizer state, of what it puts into a checkpoint, of that what is copied first)."""
    parts = stepped(config, weights)
    _, sharded = state._sharded(parts)
    tensors = [t for t in nested_values(sharded or {}) if isinstance(t, ShardedTensor)]
    inner = parts.optimizer.chained_optimizers[0].optimizer
    own = [t for s in inner.state.values() for t in s.values()] + [p for g in inner.param_groups for p in g["params"]]
    storages = {t.untyped_storage().data_ptr() for t in own}
    held = sum(t.data.numel() * t.data.element_size() for t in tensors)
    copied = [t.data for t in tensors if t.data.untyped_storage().data_ptr() not in storages]
    saved(parts, folder, config)
    return sum(t.numel() * 4 for t in own), held, sum(t.numel() * t.element_size() for t in copied)


def test_no_rank_holds_or_writes_more_than_its_share(weights, tmp_path):
    config = configure(training={"precision": "bf16"})
    measured = run_ranks(save_and_measure, 3, config, weights, str(tmp_path))
    for own, held, copied in measured:
        assert held == own and copied == 0
    written = [0, 0, 0]
    for file in os.scandir(CheckpointStore(tmp_path).path(1)):
        if match := re.match(r"__(\d+)_", file.name):
            written[int(match[1])] += file.stat().st_size
    # The file format adds about 1 KiB a tensor, which is much in so small a model.
    assert max(written) < 1.3 * sum(written) / 3, written


def stored(folder):
    """Every tensor of a checkpoint, whole."""
    start(configure())
    everything = dist_checkpointing.load_plain_tensors(str(CheckpointStore(folder).path(1)))
    return {name: value for name, value in everything.items() if isinstance(value, torch.Tensor)}


def save_twice(config, weights, folder, old_folder):
    """Also in the form of Megatron that gathers the state on one rank, in which checkpoints were written before."""
    parts = stepped(config, weights)
    saved(parts, folder, config)
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_TE_OPTIMIZER = True  # which count steps as ours does
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
    metadata["distrib_optim_fully_reshardable_mem_efficient"] = True
    model = state._sharded_model(parts.chunks)
    content = model | {
        "optimizer": parts.optimizer.sharded_state_dict(model, metadata=metadata),
        "opt_param_scheduler": parts.scheduler.state_dict(),
        "train_state": state.asdict(TrainState(iteration=1)),
    }
    saver = CheckpointSaver(CheckpointStore(old_folder), keep_last=0)
    saver.start(content, 1, dump_config(config), metadata=metadata)
    saver.wait()


def load_and_save(config, folder, again):
    _, parts = start(config)
    load_checkpoint(Path(folder), parts)
    saved(parts, again, config)


def test_stored_tensors_are_the_same_for_every_layout_and_those_of_megatrons_own_form(weights, tmp_path):
    training = {"precision": "bf16"}
    first, old = str(tmp_path / "first"), str(tmp_path / "old")
    run_ranks(save_twice, 4, configure(parallel=SP2, training=training), weights, first, old)
    (expected,), (gathered,) = run_ranks(stored, 1, first), run_ranks(stored, 1, old)
    kinds = {name.split(".")[2] for name in expected if name.startswith("optimizer.")}
    assert kinds == {"param", "exp_avg", "exp_avg_sq"}
    assert same(gathered, expected)
    for source, names in ((first, ELSEWHERE), (old, ["dp3"])):
        for name in names:
            world_size, parallel = ELSEWHERE[name]
            again = str(tmp_path / f"{os.path.basename(source)} {name}")
            elsewhere = configure(parallel=parallel, training=training)
            run_ranks(load_and_save, world_size, elsewhere, str(CheckpointStore(source).path(1)), again)
            assert same(run_ranks(stored, 1, again)[0], expected), (source, name)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)
