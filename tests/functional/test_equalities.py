"""The model against things nobody here wrote, and against itself by other means."""

import copy
from dataclasses import replace

import pytest
import torch
from megatron.core.utils import unwrap_model
from torch import nn
from transformers import LlavaNextForConditionalGeneration

from data_pipeline.anyres import normalise
from megatron_focus.models.core_attention import rotate
from megatron_focus.models.packed_layout import VISUAL
from megatron_focus.observability.metrics import StepRecorder
from megatron_focus.release.modeling_focus_llava import FocusLlavaForConditionalGeneration
from megatron_focus.samplers.draws import TextDraws
from megatron_focus.training.balance_loss import row_balance_coefficient
from megatron_focus.training.batch import StepFeeder
from megatron_focus.training.step import forward_backward
from tests.distributed.harness import run_ranks
from tests.distributed.workers import configure, start, step_batch
from tests.functional.sides import FAMILIES, both_sides, family, hf_inputs, row_of_samples, samples_of, without_samplers
from tests.functional.single import one_rank_model, row_inputs
from tests.tiny import make_row, tiny_model


def logits_beside_llava_next(tokenizer_folder, name):
    """Largest difference of logits from the stock model, samplers off, for each sample of a packed row."""
    model = without_samplers(family(name))
    chunk, stock = both_sides(model, tokenizer_folder, LlavaNextForConditionalGeneration, seed=3)
    row = row_of_samples(tokenizer_folder, seed=5)
    with torch.no_grad():
        result = chunk(row_inputs(model, row, training=False), return_logits=True)
        ours = result.output[:, 0, : model.language.vocab_size].split(result.layout.seqlens)
        theirs = [stock(**hf_inputs(row, part)).logits[0] for part in samples_of(row)]
    assert [len(x) for x in ours] == [len(x) for x in theirs]
    return [((a - b).abs().max().item(), b.abs().max().item()) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_without_samplers_logits_equal_llava_next(dataset, name):
    (differences,) = run_ranks(logits_beside_llava_next, 1, str(dataset / "tokenizer"), name)
    for difference, size in differences:
        assert difference < 2e-5 * size, differences  # fp32 sums in another order: 2e-6 of the largest logit was seen


def logits_beside_the_release(tokenizer_folder, name):
    """Both samplers on: tokens left on both sides and the largest difference of logits, per sample."""
    model = family(name)
    chunk, release = both_sides(model, tokenizer_folder, FocusLlavaForConditionalGeneration, seed=4)
    row = row_of_samples(tokenizer_folder, seed=6)
    with torch.no_grad():
        result = chunk(row_inputs(model, row, training=False), return_logits=True)
        ours = result.output[:, 0, : model.language.vocab_size].split(result.layout.seqlens)
        theirs = [release(**hf_inputs(row, part)).logits[0] for part in samples_of(row)]
    dropped = [int(count) for _, count in result.decoder.dropped]
    pairs = zip(ours, theirs, strict=True)
    return [(len(a), len(b), (a - b).abs().max().item() if len(a) == len(b) else None) for a, b in pairs], dropped


@pytest.mark.parametrize("name", FAMILIES)
def test_with_samplers_logits_equal_the_release(dataset, name):
    ((samples, dropped),) = run_ranks(logits_beside_the_release, 1, str(dataset / "tokenizer"), name)
    assert sum(dropped) > 20
    for ours, theirs, difference in samples:
        assert ours == theirs  # as many tokens are left
        assert difference < 1e-4, samples  # logits of size 7; 8e-6 was seen


class _Masked(nn.Module):
    """A core attention over the whole row that hides dropped keys from every query."""

    def __init__(self, core, visible):
        super().__init__()
        self.core, self.visible = core, visible

    def forward(self, query, key, value, mask, attn_mask_type=None, attention_bias=None, packed_seq_params=None):
        query, key = (
            rotate(x, packed_seq_params.angles, self.core.config, self.core.pg_collection) for x in (query, key)
        )
        sample = torch.repeat_interleave(torch.tensor(packed_seq_params.seqlens))
        allowed = (sample[:, None] == sample[None]) & torch.ones(len(query), len(query)).tril().bool()
        allowed = (allowed & self.visible[None]) | torch.eye(len(query), dtype=torch.bool)
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed[None, None], enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1)


def dropped_beside_masked(layers, gammas):
    """Losses with tokens dropped, and with the same tokens kept and hidden."""
    model = tiny_model()
    torch.manual_seed(5)
    chunk = one_rank_model(model, 250)
    row = make_row(7, [[(100, 80)], [(60, 200), (57, 57)], []])
    draws = TextDraws(
        drop_layer=torch.tensor(layers, dtype=torch.int32),
        gamma=torch.tensor(gammas, dtype=torch.float64),
        asking_turn=torch.zeros(3, dtype=torch.int64),
    )
    inputs = row_inputs(model, row, training=True, draws=draws)
    dropped = chunk(inputs)
    everything = replace(draws, drop_layer=torch.full((3,), -1, dtype=torch.int32))
    whole = chunk(row_inputs(model, row, training=True, draws=everything))
    left = {(s, p) for s, p in zip(dropped.layout.sample.tolist(), dropped.layout.position.tolist(), strict=True)}
    sample = whole.layout.sample.tolist()
    stays = torch.tensor([(s, p) in left for s, p in zip(sample, whole.layout.position.tolist(), strict=True)])
    first = torch.tensor([layers[s] for s in sample])
    for layer in chunk.decoder.layers:
        visible = stays | (first > layer.layer_number - 1)
        layer.self_attention.core_attention = _Masked(layer.self_attention.core_attention, visible)
    masked = chunk(row_inputs(model, row, training=True, draws=everything))
    count = int((~stays & (whole.layout.kind == VISUAL)).sum())
    return dropped.output.detach(), masked.output.detach(), whole.output.detach(), count


@pytest.mark.parametrize("layers", [[0, 0, 0], [3, 5, 2], [7, 1, 7]])
def test_dropping_equals_hiding_the_dropped_keys(layers):
    ((dropped, masked, whole, count),) = run_ranks(dropped_beside_masked, 1, layers, [0.5, 0.6, 0.5])
    assert count > 30
    torch.testing.assert_close(dropped, masked, rtol=1e-5, atol=2e-5)  # losses of 6; 2e-6 was seen
    assert (dropped - whole).abs().max() > 1e-3  # dropping did change something


def balance_gradient(alpha):
    """The selector's gradient from the schedule's form and from one plain autograd graph."""
    model = tiny_model()
    model.vision_sampler.balance_scope, model.vision_sampler.balance_loss_coeff = "row", alpha
    torch.manual_seed(6)
    chunk = one_rank_model(model, 250)
    rows = [make_row(i, images) for i, images in enumerate(([[(100, 80)], []], [[(30, 90)], [(112, 112)]], [[]]))]
    inputs = [row_inputs(model, row, training=True) for row in rows]
    windows = sum(i.plan.num_windows for i in inputs)
    tokens = sum(i.loss_tokens for i in inputs)
    parameters = list(chunk.vision_sampler.parameters())

    total = torch.zeros(())
    for one in inputs:
        out = chunk(one)
        total = total + out.output.sum() / tokens
        total = total + alpha * one.plan.num_windows / windows * out.visual.balance
    plain = torch.autograd.grad(total, parameters)

    scheduled = [torch.zeros_like(p) for p in parameters]
    for one in inputs:
        one.balance_coefficient = row_balance_coefficient(model.vision_sampler, one.plan.num_windows, windows, tokens)
        for whole, part in zip(scheduled, torch.autograd.grad(chunk(one).output.sum(), parameters), strict=True):
            whole += part / tokens
    return plain, scheduled


def test_the_balance_gradient_of_rows_is_that_of_the_loss_as_written():
    ((plain, scheduled),) = run_ranks(balance_gradient, 1, 0.1)
    ((without, _),) = run_ranks(balance_gradient, 1, 0.0)
    for a, b, c in zip(plain, scheduled, without, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)  # 3e-8 was seen
        assert (a - c).abs().max() > 1e-4  # the balance loss is felt


def batch_balance_gradient():
    """What the balance loss adds to the selector's gradient in a step of three rows, and autograd's float64 answer."""
    torch.manual_seed(6)
    config = configure(None, {"use_distributed_optimizer": False})
    device, parts = start(config)
    model = unwrap_model(parts.chunks[0])
    images = ([[(100, 80)], []], [[(30, 90)], [(112, 112)]], [[]])
    rows = [make_row(number, of_row) for number, of_row in enumerate(images)]
    inputs = StepFeeder(config, iter([step_batch(rows)]), pad_token_id=249, device=device).next_step(0)
    found = []
    for alpha in (0.1, 0.0):
        config.model.vision_sampler.balance_loss_coeff = alpha
        forward_backward(parts.chunks, parts.optimizer, inputs, StepRecorder(config.model, 1000))
        found.append([p.main_grad.clone() for p in model.vision_sampler.parameters()])
    weight, bias = (p.detach().double().requires_grad_() for p in model.vision_sampler.parameters())
    probs = []
    for one in inputs.rows:
        if len(one.row.tiles) > 0:
            features = model.projector(model.vision_tower(normalise(one.row.tiles, torch.float32)))
            scores = model.vision_sampler.scores(features, one.plan)[one.plan.window_counted].detach()
            probs.append((scores.double() @ weight.T + bias).softmax(-1))
    probs = torch.cat(probs)
    share = torch.bincount(probs.argmax(-1), minlength=3) / len(probs)
    wanted = torch.autograd.grad(0.1 * (share * probs.mean(0)).sum(), (weight, bias))
    return [(a - b, w) for a, b, w in zip(*found, wanted, strict=True)]


def test_the_balance_gradient_of_a_batch_is_that_of_the_loss_as_written():
    for added, wanted in run_ranks(batch_balance_gradient, 1)[0]:
        assert wanted.norm() > 1e-3
        assert (added - wanted).norm() < 1e-5 * wanted.norm()  # a difference of float32; 2e-7 was seen


def test_a_wrong_number_of_placeholders_is_refused():
    row = make_row(1, [[(100, 80)]])
    row.tokens[row.tokens == 250] = 7
    with pytest.raises(AssertionError, match="row1-0 has 0 image placeholders but 1 images"):
        run_ranks(_forward, 1, copy.deepcopy(row))


def _forward(row):
    model = tiny_model()
    one_rank_model(model, 250)(row_inputs(model, row, training=True))
