"""Writing a checkpoint again under another parallel layout, by as many ranks as the layout has:

python -m megatron_focus.benchmark.conversion.layouts TP PP IN OUT
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing

from data_pipeline.conversations.tokenizer import load_tokenizer
from megatron_focus.checkpoint.state import save_weights
from megatron_focus.checkpoint.store import CheckpointStore
from megatron_focus.config.loading import dump_config, load_config
from megatron_focus.models.builder import build_model
from megatron_focus.parallel.initialize import initialize, shut_down

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_layout(source: Path, target: Path, tensor_parallel: int, pipeline_parallel: int) -> None:
    """Load a checkpoint under a layout and write it again, as a run of that layout does.

    Args:
        source: a run's or an import's folder.
        target: folder to create.
        tensor_parallel: ranks that share each layer.
        pipeline_parallel: stages.

    Raises:
        ValueError: a rank failed; what it said is the message.
    """
    world_size = tensor_parallel * pipeline_parallel
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    words = [str(tensor_parallel), str(pipeline_parallel), str(source), str(target)]
    command = [sys.executable, "-W", "ignore", "-m", "megatron_focus.benchmark.conversion.layouts", *words]
    launch = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    launch |= {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / f"rank{rank}" for rank in range(world_size)]
        ranks = []
        try:
            for rank in range(world_size):
                environment = os.environ | launch | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with said[rank].open("wb") as output:
                    ranks.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            codes = [process.wait() for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        if any(codes):
            rank = next(rank for rank, code in enumerate(codes) if code)
            raise ValueError(f"rank {rank} of TP {tensor_parallel} x PP {pipeline_parallel}:\n{said[rank].read_text()}")


def _write(source: Path, target: Path, tensor_parallel: int, pipeline_parallel: int) -> None:
    """On each rank."""
    folder = CheckpointStore(source).latest()
    if folder is None:
        raise ValueError(f"{source} has no checkpoint")
    config = load_config(folder / "config.yaml")
    config.parallel.tensor_model_parallel_size = tensor_parallel
    config.parallel.pipeline_model_parallel_size = pipeline_parallel
    initialize(config.parallel, seed=0)
    assert config.data.tokenizer is not None
    image_token = load_tokenizer(config.data.tokenizer).image_token_id
    with torch.device("meta"):  # what is loaded at once needs no initial values
        chunks: list[Any] = list(
            build_model(
                config.model, config.parallel, image_token_id=image_token, dtype=_DTYPES[config.training.precision]
            )
        )
    for chunk in chunks:
        chunk.to_empty(device="cpu")
        # The tensors are filled in place. Transformer Engine's extra state is in no checkpoint of this project.
        weights = {k: t for k, t in chunk.sharded_state_dict().items() if not k.endswith("_extra_state")}
        dist_checkpointing.load({"model": weights}, str(folder))
    save_weights(CheckpointStore(target), chunks, dump_config(config))
    shut_down()


def main(arguments: list[str]) -> None:
    """One rank, see :func:`write_layout`; the launcher's variables say which."""
    torch.set_num_threads(1)
    _write(Path(arguments[2]), Path(arguments[3]), int(arguments[0]), int(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
