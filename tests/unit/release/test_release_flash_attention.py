"""transformers' FlashAttention path on a CPU: its own unpadding and packing, with the two kernels written in torch.

The kernels stand for ``flash_attn_func`` and ``flash_attn_varlen_func`` as flash-attn 2 documents them: causal masks
are aligned at the last query and the last key. So the tests see which masks, lengths and positions the real ones get.
"""

import pytest
import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration, modeling_flash_attention_utils

from megatron_focus.release import focused_decoder
from tests.unit.release import tiny_models as tiny

PROMPTS = [tiny.ONE, tiny.TWO, tiny.TURNS, tiny.TEXT]


class Kernels:
    """The two kernels; counts their calls."""

    def __init__(self):
        self.dense = self.packed = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
        """q [Lq, n, d], k and v [Lk, g, d]."""
        k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
        scores = torch.einsum("qnd,knd->nqk", q, k) * scale
        if causal:
            visible = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
            scores = scores.masked_fill(~visible, -torch.inf)
        return torch.einsum("nqk,knd->qnd", scores.softmax(-1), v)

    def flash_attn_func(self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
        assert dropout_p == 0 and window_size == (-1, -1)
        self.dense += 1
        return torch.stack([self.attend(*row, softmax_scale, causal) for row in zip(q, k, v, strict=True)])

    def flash_attn_varlen_func(
        self,
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
    ):
        assert dropout_p == 0 and window_size == (-1, -1)
        self.packed += 1
        parts = (t.split(cu.diff().tolist()) for t, cu in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k)))
        return torch.cat([self.attend(*part, softmax_scale, causal) for part in zip(*parts, strict=True)])


@pytest.fixture
def kernels(monkeypatch) -> Kernels:
    made = Kernels()

    def imports(implementation, *args, **kwargs):
        utils = modeling_flash_attention_utils
        return made.flash_attn_func, made.flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input

    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", imports)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    # The real kernels compute in half precision, in which nothing could be compared.
    monkeypatch.setattr(focused_decoder, "FLASH_DTYPES", (torch.float32,))
    return made


def with_flash(model):
    """Past the checks for a GPU and for the package flash-attn, which ``set_attn_implementation`` makes."""
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config._attn_implementation_internal = "flash_attention_2"
    return model


def pair(**kwargs):
    return tiny.focus_model(**kwargs), with_flash(tiny.focus_model(**kwargs))


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("prompts", [[tiny.TWO], PROMPTS], ids=["single", "ragged batch"])
@torch.no_grad()
def test_logits(kernels, prompts, family):
    expected, flash = pair(family=family, vision={}, text={"gamma": 0.4})
    inputs = tiny.batch(prompts)
    output, reference = flash(**inputs), expected(**inputs)
    assert output.logits.shape[1] < inputs["input_ids"].shape[1]
    assert torch.equal(output.input_positions, reference.input_positions)
    valid = reference.input_positions >= 0
    # Sums in another order: measured 1.5e-5 at most, logits are up to 7.
    torch.testing.assert_close(output.logits[valid], reference.logits[valid], atol=1e-4, rtol=0)
    # A single row has gaps in its positions and no padding: it must not be packed as several samples.
    tower, layers = 3, 4
    assert kernels.dense == tower + (layers if len(prompts) == 1 else 0)
    assert kernels.packed == (0 if len(prompts) == 1 else layers)


@pytest.mark.parametrize("prompts", [[tiny.ONE], PROMPTS], ids=["single", "ragged batch"])
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam search"])
@torch.no_grad()
def test_generation(kernels, prompts, mode):
    expected, flash = pair(vision={}, text={"gamma": 0.4})
    inputs = tiny.batch(prompts)
    form = {"max_new_tokens": 6, "do_sample": False, **mode}
    assert torch.equal(flash.generate(**inputs, **form), expected.generate(**inputs, **form))


@torch.no_grad()
def test_a_later_turn_of_several_tokens(kernels):
    expected, flash = pair(vision={}, text={"gamma": 0.4})
    inputs = tiny.batch(PROMPTS)
    turn = torch.tensor([tiny.prompt_ids(tiny.user("and its colour?") + tiny.ANSWER, [])] * len(PROMPTS))
    logits = []
    for model in (expected, flash):
        cache = model(**inputs, use_cache=True).past_key_values
        logits.append(model(input_ids=turn, past_key_values=cache).logits)
    # As above.
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_without_samplers_as_stock(kernels):
    stock = with_flash(tiny.lively(LlavaNextForConditionalGeneration(tiny.stock_config())))
    ours = with_flash(tiny.focus_model())
    ours.load_state_dict(stock.state_dict())
    inputs = tiny.batch([tiny.ONE])
    assert torch.equal(stock(**inputs).logits, ours(**inputs).logits)


@torch.no_grad()
def test_refusals():
    model = with_flash(tiny.focus_model(vision={}, text={}))
    model.config.vision_config._attn_implementation_internal = "sdpa"
    inputs = tiny.batch([tiny.ONE])
    with pytest.raises(ValueError, match="computes in float16 or bfloat16, but the model is in torch"):
        model(**inputs)
    model.config.text_config._attn_implementation_internal = "made_up"
    with pytest.raises(ValueError, match="attention implementation 'made_up' is not supported; use 'eager', 'sdpa' or"):
        model(**inputs)
    with pytest.raises(ValueError, match="flex_attention"):
        tiny.focus_model().set_attn_implementation("flex_attention")
