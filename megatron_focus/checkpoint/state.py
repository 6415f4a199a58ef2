"""What a checkpoint holds, and how it is saved and loaded under any parallel layout.

Model and optimizer go through Megatron's ``dist_checkpointing``: every tensor is stored under its global name and
shape, so a checkpoint written at one layout loads at any other.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, DistributedOptimizer, MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint.api import CheckpointException

from data_pipeline.loading.steps import LoaderState
from megatron_focus.checkpoint.optimizer_shards import load_step, optimizer_shards, plain_groups
from megatron_focus.checkpoint.saver import CONFIG_FILE, CheckpointSaver
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.models.modules import module_of
from megatron_focus.parallel.megatron_versions import check_readable

_EXTRA_STATE = "_extra_state"
_OPTIMIZER_FORMAT = {"chained_optim_avoid_prefix": True}
_SHARDS = "param_state"


@dataclass(kw_only=True)
class TrainState:
    """Where a run stands; equal on all ranks."""

    iteration: int = 0
    """Completed steps."""
    consumed_samples: int = 0
    loader: dict[str, Any] | None = None
    """State of the loader after the last consumed batch; None before the first."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Samples left out so far, by reason."""
    skipped_steps: int = 0
    """Steps whose update was not applied."""
    skipped_in_a_row: int = 0
    """Of these, the ones since the last applied update."""
    usual_loss: float | None = None
    """Running mean of the loss over applied steps, against which a spike is seen."""


@dataclass(kw_only=True)
class Trainable:
    """The objects whose state makes a run."""

    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler


def start_checkpoint(saver: CheckpointSaver, parts: Trainable, state: TrainState, config_yaml: str) -> None:
    """Begin to write a checkpoint of ``state.iteration``; ``saver.poll`` tells when it is complete (collective).

    Raises:
        SaveError: its folder cannot be written.
    """
    (model, optimizer) = _sharded(parts)
    content = model | {
        "optimizer": optimizer,
        "opt_param_scheduler": parts.scheduler.state_dict(),
        "train_state": asdict(state),
    }
    saver.start(content, state.iteration, config_yaml, metadata=_OPTIMIZER_FORMAT)


def save_weights(store: CheckpointStore, chunks: list[DistributedDataParallel], config_yaml: str) -> Path:
    """Write the weights alone, as iteration 0: what a run starts from (``checkpoint.pretrained``) (collective).

    Raises:
        SaveError: the folder cannot be written.
    """
    saver = CheckpointSaver(store, keep_last=0)
    saver.start(_sharded_model(chunks), 0, config_yaml)
    saved = saver.wait()
    assert saved is not None
    return saved


def check_same_schedule(folder: Path, config: RunConfig) -> None:
    """Refuse to continue a run under other optimizer settings: the checkpoint's state was made by its own.

    Raises:
        ValueError: names each key with both values.
    """
    saved = load_config(folder / CONFIG_FILE)
    before, now = (
        {f"optimizer.{k}": v for k, v in asdict(c.optimizer).items() if k != "fused_adam"}
        | {"training.train_iters": c.training.train_iters, "training.seed": c.training.seed}
        for c in (saved, config)
    )
    changed = [f"{key}={now[key]} (was {before[key]})" for key in before if before[key] != now[key]]
    if changed:
        raise ValueError(
            f"{folder} cannot be continued with {', '.join(changed)}: change it back, or start a new run in another "
            "checkpoint.save with checkpoint.pretrained naming this one"
        )


def load_checkpoint(folder: Path, parts: Trainable) -> TrainState:
    """Restore model, optimizer and schedule from a checkpoint of any layout (collective).

    Raises:
        ValueError: the checkpoint does not fit the configured model; names the checkpoint and the reason.
    """
    (model, optimizer) = _sharded(parts)
    loaded = _load(model | {"optimizer": optimizer}, folder)
    _load_chunks(parts.chunks, loaded)
    _load_optimizer(parts, loaded["optimizer"])
    parts.scheduler.load_state_dict(loaded["opt_param_scheduler"])
    return TrainState(**loaded["train_state"])


def load_weights(folder: Path, parts: Trainable, new_modules: Collection[str] = ()) -> None:
    """Start a new run from the weights of a checkpoint of any layout (collective).

    Args:
        folder: the checkpoint.
        parts: what is loaded into.
        new_modules: modules that keep the weights they have, see ``module_of``.

    Raises:
        ValueError: the checkpoint does not fit the rest of the configured model.
    """
    wanted = {
        chunk: {name: tensor for name, tensor in state.items() if module_of(name) not in new_modules}
        for chunk, state in _sharded_model(parts.chunks).items()
    }
    _load_chunks(parts.chunks, _load(wanted, folder), new_modules)
    parts.optimizer.reload_model_params()


def _sharded_model(chunks: list[DistributedDataParallel]) -> dict[str, Any]:
    """Sharded state of each chunk. Names inside are global, so chunks of any layout find theirs.

    Transformer Engine's ``_extra_state`` (FP8 scales) stays out: there is no FP8 here, and without it a checkpoint does
    not depend on the layer implementation.
    """
    states = (unwrap_model(chunk).sharded_state_dict(metadata=dict(_OPTIMIZER_FORMAT)) for chunk in chunks)
    return {
        f"model{i}": {name: tensor for name, tensor in state.items() if not name.endswith(_EXTRA_STATE)}
        for i, state in enumerate(states)
    }


def _sharded(parts: Trainable) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and optimizer, whose moments are allocated if it has taken no step yet."""
    model = _sharded_model(parts.chunks)
    if (distributed := _distributed(parts.optimizer)) is None:
        return model, parts.optimizer.sharded_state_dict(model, is_loading=True, metadata=dict(_OPTIMIZER_FORMAT))
    groups = {"param_groups": plain_groups(distributed)}
    return model, {"optimizer": groups, _SHARDS: optimizer_shards(distributed, model)}


def _load_optimizer(parts: Trainable, loaded: dict[str, Any]) -> None:
    if (distributed := _distributed(parts.optimizer)) is not None:
        load_step(distributed, loaded["optimizer"]["param_groups"])
        for name, shard in optimizer_shards(distributed, _sharded_model(parts.chunks)).items():
            shard.data.copy_(loaded[_SHARDS][name])
        return
    # Megatron-Core 0.16 takes groups that differ in their learning rates alone for one and the same. They stand in the
    # same order, so they are numbered, in a key that it does compare.
    saved = loaded.get("optimizer", loaded)["param_groups"]
    for number, groups in enumerate(zip(parts.optimizer.param_groups, saved, strict=True)):
        for group in groups:
            group["is_expert_parallel"] = number
    parts.optimizer.load_state_dict(loaded)
    for group in parts.optimizer.param_groups:
        group["is_expert_parallel"] = False


def _distributed(optimizer: MegatronOptimizer) -> DistributedOptimizer | None:
    """The one that shards its state, if it does. There is one for all chunks: only experts would have their own."""
    (single,) = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    return single if isinstance(single, DistributedOptimizer) else None


def _load(sharded: dict[str, Any], folder: Path) -> dict[str, Any]:
    check_readable(folder)
    try:
        return dist_checkpointing.load(sharded, str(folder))
    except (CheckpointingException, CheckpointException, KeyError, RuntimeError) as error:
        causes = getattr(error, "failures", {0: error}).values()
        reasons = {str(cause[0] if isinstance(cause, tuple) else cause) for cause in causes}
        # Behind the name of what is missing stands a list of everything that is there.
        short = "; ".join(sorted(reason.partition(": [")[0].strip("\"'") for reason in reasons))
        raise ValueError(
            f"checkpoint {folder} does not fit this model: {short} (a module that it lacks can begin with new weights: "
            "checkpoint.new_modules)"
        ) from error


def _load_chunks(
    chunks: list[DistributedDataParallel], loaded: dict[str, Any], new_modules: Collection[str] = ()
) -> None:
    for i, chunk in enumerate(chunks):
        keys = unwrap_model(chunk).load_state_dict(loaded[f"model{i}"], strict=False)
        needed = (name for name in keys.missing_keys if module_of(name) not in new_modules)
        missing = [name for name in needed if not name.endswith(_EXTRA_STATE)]
        if missing or keys.unexpected_keys:
            raise ValueError(f"the checkpoint lacks {missing} and has {keys.unexpected_keys} beyond the model")


def loader_state(saved: dict[str, Any] | None) -> LoaderState | None:
    """The loader's state from a checkpoint's plain values.

    Raises:
        ValueError: they are those of another version.
    """
    if saved is None:
        return None
    if saved.keys() != (expected := LoaderState.__dataclass_fields__.keys()):
        raise ValueError(
            f"the checkpoint's loader state has {', '.join(saved)} instead of {', '.join(expected)}: it was written by "
            "another version, which has to finish the run"
        )
    return LoaderState(**saved)
