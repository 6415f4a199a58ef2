"""Checkpoints written and read piece by piece, without a process group."""

import os

import pytest
import torch

from megatron_focus.conversion.checkpoint_reader import CheckpointTensors, read_model
from megatron_focus.conversion.checkpoint_writer import Piece, write_pieces
from megatron_focus.conversion.initial_values import initial_value
from megatron_focus.conversion.parameter_table import parameter_table
from megatron_focus.conversion.stored_names import stored_name, table_names
from tests.tiny import tiny_model
from tests.unit.conversion.tiny_checkpoint import pieces_of, write_state
from tests.unit.conversion.tiny_facts import random_state, tiny_facts


@pytest.fixture
def checkpoint(tmp_path):
    state = random_state(tiny_facts())
    assert write_state(tmp_path, state, rows=50) == sum(tensor.nbytes for tensor in state.values())
    return tmp_path, state


def test_what_is_written_is_read(checkpoint):
    """Tensors of one piece and of several, alone and stacked."""
    folder, state = checkpoint
    assert not torch.distributed.is_initialized()
    read = read_model(folder)
    assert read.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())


def test_damage_is_reported(checkpoint):
    folder, _ = checkpoint
    files = sorted(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(files[-1], 100)
    with pytest.raises(ValueError, match=f"{folder}.* cannot be read"):
        read_model(folder)
    files[-1].unlink()
    with pytest.raises(ValueError, match="No such file"):
        read_model(folder)
    os.truncate(folder / ".metadata", 50)
    with pytest.raises(ValueError, match="metadata is damaged"):
        CheckpointTensors(folder)
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        CheckpointTensors(folder.parent)


def test_a_hole_is_reported(tmp_path):
    state = {"image_newline": torch.ones(8)}
    write_pieces(tmp_path, pieces_of(state, rows=4)[:1], {}, lambda _: None)
    with pytest.raises(ValueError, match="image_newline is incomplete: 4 of 8"):
        read_model(tmp_path)


def test_a_piece_of_another_shape_or_type_is_refused(tmp_path):
    for wrong in (torch.ones(7), torch.ones(8, dtype=torch.bfloat16)):
        piece = Piece(name="x", shape=(8,), first_row=0, rows=8, dtype=torch.float32, build=lambda wrong=wrong: wrong)
        with pytest.raises(ValueError, match=r"x: got .*expected \(8,\) torch.float32"):
            write_pieces(tmp_path, [piece], {}, lambda _: None)


def test_stored_names_are_the_tables_backwards():
    for entry in parameter_table(tiny_facts()):
        place = stored_name(entry.megatron)
        if place.layer is None:
            assert place.key == entry.megatron and table_names(place.key, 4) is None
        else:
            names = table_names(place.key, 4)
            assert names is not None and names[place.layer] == entry.megatron


def test_initial_values_are_distributed_as_in_training():
    """Against the modules that training builds."""
    from tests.functional.single import one_rank_model

    model = tiny_model(hidden_size=256)
    built = {n: p.detach() for n, p in one_rank_model(model, 250).named_parameters()}
    for name, parameter in built.items():
        if not name.startswith(("projector.", "image_newline", "vision_sampler.")):
            continue
        drawn = initial_value(name, tuple(parameter.shape), model, seed=0)
        if name.endswith(".bias"):
            assert not parameter.any() and not drawn.any()
        else:
            # The deviation of n draws is known to about 1 / sqrt(2 n); three times that for each of the two.
            tolerance = 6 / (2 * parameter.numel()) ** 0.5
            assert abs(drawn.std() / parameter.std() - 1) < tolerance, name
            assert not torch.equal(drawn, initial_value(name, tuple(parameter.shape), model, seed=1))
    with pytest.raises(ValueError, match="no initial value"):
        initial_value("decoder.final_layernorm.weight", (4,), model, seed=0)
