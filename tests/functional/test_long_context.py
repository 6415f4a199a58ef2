"""Llama 3.1's scaled RoPE beyond the 8192 positions that the unscaled one was made for."""

import torch
from transformers import LlavaNextForConditionalGeneration

from tests.distributed.harness import run_ranks
from tests.functional.sides import both_sides, family, hf_inputs, row_of_samples, samples_of, without_samplers
from tests.functional.single import row_inputs

BEGIN = 8192
"""``original_max_position_embeddings`` of Llama 3.1, which Megatron-Core has built in."""


def logits_behind(tokenizer_folder: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the tokens from position ``BEGIN`` on: Megatron's, transformers', and transformers' without scaling."""
    model = without_samplers(family("llama 3.1"))
    chunk, stock = both_sides(model, tokenizer_folder, LlavaNextForConditionalGeneration, seed=9)
    row = row_of_samples(tokenizer_folder, seed=9, images=[[(100, 80)]], words=BEGIN)
    (part,) = samples_of(row)
    inputs = hf_inputs(row, part)
    logits = []
    with torch.no_grad():
        result = chunk(row_inputs(model, row, training=False), return_logits=True)
        logits.append(result.output[BEGIN:, 0, : model.language.vocab_size])
        logits.append(stock(**inputs).logits[0, BEGIN:])
        text = stock.config.text_config
        text.rope_parameters = {"rope_type": "default", "rope_theta": text.rope_parameters["rope_theta"]}
        unscaled = LlavaNextForConditionalGeneration(stock.config).eval()
        unscaled.load_state_dict(stock.state_dict())
        logits.append(unscaled(**inputs).logits[0, BEGIN:])
    return tuple(logits)


def test_logits_beyond_the_original_context_equal_llava_next(dataset):
    ((ours, theirs, unscaled),) = run_ranks(logits_behind, 1, str(dataset / "tokenizer"))
    assert len(ours) > 50
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # logits of size 6; 7e-6 was seen
    assert (ours - unscaled).abs().max() > 1  # without the scaling they are others: 5.9 was seen
