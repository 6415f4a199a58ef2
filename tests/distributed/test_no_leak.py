"""No answer that is learnt has a part in choosing the tokens that are kept while it is learnt.

Every labelled token of a sample of three questions is changed in turn: no logit before it may change, not by a bit, and
no other token may be kept. That holds in every mode of the text-guided sampler and under every layout.
"""

import dataclasses

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import unwrap_model

from data_pipeline.row import IGNORE_INDEX
from megatron_focus.config.schema import TextSamplerConfig, VisionSamplerConfig
from megatron_focus.models.packed_layout import PAD
from megatron_focus.training.batch import StepFeeder
from tests.distributed.harness import run_ranks
from tests.distributed.workers import configure, start, step_batch
from tests.tiny import chat_row, tiny_model

RANGES = {"layer_range": [0, 7], "gamma_range": [0.3, 0.6]}
MODES = {
    "off": TextSamplerConfig(mode="off"),
    "direct": TextSamplerConfig(mode="direct"),
    "train, the first turn asks": TextSamplerConfig(mode="train", layer=6, gamma=0.4),
    "train, a random turn asks": TextSamplerConfig(mode="train", layer=6, gamma=0.4, queries="random_turn"),
    "random, the first turn asks": TextSamplerConfig(mode="random", **RANGES),
    "random, a random turn asks": TextSamplerConfig(mode="random", queries="random_turn", **RANGES),
}
LAYOUTS = {
    "one rank": (1, {}),
    "tp2": (2, {"tensor_model_parallel_size": 2}),
    "tp2 sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
    "pp2 vpp2": (2, {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}),
    "tp2 pp2 sp": (
        4,
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True},
    ),
}
SAMPLE = [([(100, 80), (57, 57)], 3)]
SAMPLERS = {
    "compress": VisionSamplerConfig(scales=["1x1", "2x2", "4x4"]),
    "keep": VisionSamplerConfig(scales=["1x1", "2x2", "4x4"], global_view="keep"),
    "heuristic": VisionSamplerConfig(method="heuristic", heuristic_keep=0.6, scales=["1x1"]),
    "off": VisionSamplerConfig(enabled=False),
}


def leaks(parallel, sampler, modes):
    """For each mode: labelled tokens changed, tokens dropped, and changes that were felt before their token."""
    model = tiny_model()
    model.vision_sampler = SAMPLERS[sampler]
    config = configure(model, parallel)
    device, parts = start(config)
    found = {}
    for mode in modes:
        config.model.text_sampler = MODES[mode]
        first = one_step(config, [chat_row(1, SAMPLE)], device).rows
        row = chat_row(1, SAMPLE)
        # What is learnt is known on the first stage alone; the row of every rank is the same.
        learnt = first[0].row.labels.cpu() if first else row.labels
        shared = [learnt]
        torch.distributed.broadcast_object_list(shared, src=0)
        places = [int(p) + 1 for p in (shared[0] != IGNORE_INDEX).nonzero()[:, 0]]
        rows = [row, *(changed(row, place) for place in places)]
        outputs = forward(parts.chunks, one_step(config, rows, device))
        if not outputs:  # not on the last stage
            continue
        whole = outputs[0]
        felt = []
        outputs = outputs[: len(rows)]  # the interleaved schedule fills up groups with empty rows
        for place, output in zip(places, outputs[1:], strict=True):
            # Positions count the visual tokens too; the text behind the images lies at the end of the sample.
            position = sorted(whole)[place - len(row.tokens)]
            before = {p for p in whole if p < position}
            same = before == {p for p in output if p < position}
            if not same or any(not torch.equal(whole[p], output[p]) for p in before):
                felt.append(place)
        found[mode] = (len(places), max(whole) + 1 - len(whole), felt)
    return found


def changed(row, place):
    """The row with another token at ``place``, which is also what is to be predicted before it."""
    tokens, labels = row.tokens.clone(), row.labels.clone()
    tokens[place] = (tokens[place] + 17) % 240
    labels[place - 1] = tokens[place]
    return dataclasses.replace(row, tokens=tokens, labels=labels)


def one_step(config, rows, device):
    batches = iter([step_batch(rows)]) if StepFeeder.reads_data() else None
    return StepFeeder(config, batches, pad_token_id=249, device=device).next_step(0)


def forward(chunks, inputs):
    """For each row, the logits by position of its tokens that are left; on the last stage alone."""
    outputs = []

    def forward_step(iterator, model):
        result = model(next(iterator) if iterator is not None else None, return_logits=True)

        def keep(logits):
            layout = result.layout
            real = (layout.kind != PAD).nonzero()[:, 0].tolist()
            outputs.append({int(layout.position[i]): logits[i, 0].clone() for i in real})
            return logits.sum(), torch.ones((), dtype=torch.int32), {}

        return result.output, keep

    iterators = [iter(inputs.rows) if unwrap_model(chunk).pre_process else None for chunk in chunks]
    with torch.no_grad():
        get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=inputs.num_microbatches,
            seq_length=1,
            micro_batch_size=1,
            forward_only=True,
        )
    assert not outputs or parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    return outputs


def check(results, modes):
    seen = [result for result in results if result]
    assert seen
    for result in seen:
        assert result.keys() == set(modes)
        for mode, (count, dropped, felt) in result.items():
            assert felt == [], mode
            assert count in ((5, 10, 15) if "random turn" in mode else (15,)), mode
            assert (dropped > 5) == (mode not in ("off", "direct")), mode


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_label_is_felt_before_it(layout):
    world_size, parallel = LAYOUTS[layout]
    check(run_ranks(leaks, world_size, parallel, "compress", list(MODES)), MODES)


@pytest.mark.parametrize("sampler", ["keep", "heuristic", "off"])
def test_no_label_is_felt_before_it_with_other_visual_tokens(sampler):
    check(run_ranks(leaks, 1, {}, sampler, list(MODES)), MODES)
