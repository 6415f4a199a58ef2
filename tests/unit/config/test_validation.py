"""Contradictions are refused with a sentence that says what to change, all at once."""

import importlib.util

import pytest

from megatron_focus.config.loading import load_config
from megatron_focus.config.validation import validate, validate_data


def test_the_defaults_are_the_papers_and_valid():
    validate(load_config(None), 8)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["parallel.context_parallel_size=2"], ["context_parallel_size=2", "sequence_parallel"]),
        (["parallel.tensor_model_parallel_size=3"], ["8 ranks", "tensor_model_parallel_size=3", "multiple of 3"]),
        (["parallel.sequence_parallel=true"], ["sequence_parallel", "tensor_model_parallel_size of 2"]),
        (["parallel.virtual_pipeline_model_parallel_size=2"], ["virtual_pipeline", "2 or more"]),
        (["model.language.num_layers=30", "parallel.pipeline_model_parallel_size=4"], ["num_layers=30", "layout"]),
        (["parallel.recompute_granularity=full"], ["recompute_method", "recompute_num_layers"]),
        (["parallel.recompute_method=uniform"], ["recompute_granularity=full"]),
        (["parallel.pipeline_model_parallel_layout=Ettt|tttL"], ["2 chunks", "needs 1", "6 layers", "num_layers=32"]),
        (["parallel.pipeline_model_parallel_layout=tttE"], ["'E' in front", "'L' at the end"]),
        (["parallel.overlap_param_gather=true"], ["needs parallel.overlap_grad_reduce=true"]),
        (
            [
                "parallel.overlap_param_gather=true",
                "parallel.overlap_grad_reduce=true",
                "parallel.use_distributed_optimizer=false",
            ],
            ["needs parallel.use_distributed_optimizer=true"],
        ),
        (["parallel.cross_entropy_loss_fusion=true", "training.precision=fp32"], ["rounds the gradient to bf16"]),
        (["parallel.cross_entropy_loss_fusion=true", "training.deterministic=true"], ["is not deterministic"]),
        (["parallel.cross_entropy_fusion_impl=te"], ["belongs to parallel.cross_entropy_loss_fusion=true"]),
        (["parallel.cross_entropy_fusion_impl=triton"], ["cross_entropy_fusion_impl='triton'", "native, te"]),
        (["optimizer.fused_adam=adam"], ["fused_adam='adam'", "transformer_engine, apex, torch"]),
        (["parallel.tensor_model_parallel_size=0"], ["tensor_model_parallel_size=0 must be 1 or more"]),
        (["model.image.patch_size=0", "training.seed=-1"], ["patch_size=0", "seed=-1 must be 0 or more"]),
        (["model.vision_sampler.scales=[]"], ["leaves no scale"]),
        (["model.vision_sampler.window=1", "model.vision_sampler.scales=[discard]"], ["leaves no scale"]),
        (["optimizer.lr=0"], ["lr=0.0 must be above 0"]),
        (["optimizer.module_lr={projector: -1}"], ["module_lr.projector=-1"]),
        (["model.language.kv_channels=5"], ["head size 5", "even"]),
        (["model.vision_sampler.window=3"], ["window=3"]),
        (["model.vision_sampler.window=8", "model.image.tile_size=140"], ["window=8", "10 cells", "grid_pinpoints"]),
        (["model.vision_sampler.window=2"], ["'4x4'", "window 2"]),
        (["model.vision_sampler.window=1"], ["'2x2'", "1x1, discard"]),
        (["model.vision_sampler.scales=[2x2,1x1]"], ["finest first", "['1x1', '2x2']"]),
        (["model.vision_sampler.scales=[1x1,1x1]"], ["once"]),
        (["model.vision_sampler.balance_weights=[1,1,2]"], ["balance_weights", "sum 3"]),
        (["model.vision_sampler.balance_scope=step"], ["balance_scope='step'", "batch, row"]),
        (["model.vision_sampler.score_scale=0"], ["score_scale=0", "above 0, or null"]),
        (["model.text_sampler.queries=all"], ["queries='all'", "first, random_turn"]),
        (
            ["model.text_sampler.queries=random_turn", "model.text_sampler.mode=direct"],
            ["mode=direct", "queries=first"],
        ),
        (["model.vision_sampler.gate=soft"], ["gate='soft'", "paper, ste, switch"]),
        (["model.text_sampler.layer=32"], ["layer=32", "0 to 31"]),
        (["model.text_sampler.layer_range=[8,40]"], ["layer_range=[8, 40]"]),
        (["model.text_sampler.gamma_range=[0.9,0.7]"], ["gamma_range"]),
        (["model.text_sampler.gamma=0"], ["gamma=0"]),
        (["model.language.architecture=gpt2"], ["'gpt2'", "llama, qwen2, mistral"]),
        (["model.language.architecture=qwen2"], ["add_qkv_bias=False", "Qwen2"]),
        (["data.max_sequence_length=9000"], ["9000", "max_position_embeddings=8192"]),
        (["optimizer.freeze=[encoder]"], ["'encoder'", "vision_tower"]),
        (["optimizer.freeze=[projector]", "optimizer.module_lr={projector: 1}"], ["both name 'projector'"]),
        (["optimizer.freeze=[vision_tower,projector,vision_sampler,language_model]"], ["nothing would be trained"]),
        (["optimizer.min_lr=1"], ["min_lr=1", "lr=1e-05"]),
        (["training.precision=fp16"], ["'fp16'", "bf16, fp32"]),
        (["training.global_batch_size=0"], ["global_batch_size=0"]),
        (["data.chat_template=alpaca"], ["'alpaca'"]),
        (
            ["model.vision_sampler.enabled=false", "optimizer.freeze=[vision_tower,projector,language_model]"],
            ["nothing would be trained"],
        ),
        (
            ["model.vision_sampler.enabled=false", "optimizer.module_lr={vision_sampler: 1}"],
            ["optimizer.module_lr has 'vision_sampler'", "no selector"],
        ),
        (
            ["model.vision_sampler.enabled=false", "checkpoint.new_modules=[vision_sampler]"],
            ["checkpoint.new_modules has 'vision_sampler'", "no selector"],
        ),
        (["optimizer.lr=.inf"], ["optimizer.lr=inf must be a finite number"]),
        (["optimizer.module_lr={projector: .nan}"], ["optimizer.module_lr.projector=nan"]),
        (["model.text_sampler.gamma_range=[0.5, .inf]"], ["model.text_sampler.gamma_range.1=inf"]),
        (["data.worst_case_factor=.inf", "training.loss_spike_factor=.nan"], ["worst_case_factor", "spike_factor=nan"]),
        (["optimizer.adam_beta1=1.5"], ["adam_beta1=1.5", "[0, 1)"]),
        (["optimizer.adam_eps=-1", "model.init_method_std=0"], ["adam_eps=-1.0", "init_method_std=0.0"]),
        (["logging.peak_tflops=0"], ["peak_tflops=0.0 must be above 0"]),
        (["data.seed=100000000000000000000000000"], ["data.seed=1", "at most"]),
        (["model.vision_sampler.balance_weights=[]", "model.vision_sampler.scales=[]"], ["leaves no scale"]),
    ],
)
def test_refusals(overrides, parts):
    with pytest.raises(ValueError) as error:
        validate(load_config(None, overrides), 8)
    for part in parts:
        assert part in str(error.value)


def test_uneven_layouts_with_repeats_are_understood():
    overrides = ["parallel.pipeline_model_parallel_size=4", "parallel.pipeline_model_parallel_layout=Et*5|(t*9|)*2t*9L"]
    validate(load_config(None, overrides), 8)


def test_a_run_needs_data():
    with pytest.raises(ValueError, match=r"data\.path is not set"):
        validate_data(load_config(None))


def test_all_problems_are_listed_at_once():
    with pytest.raises(ValueError) as error:
        validate(load_config(None, ["training.precision=fp16", "model.vision_sampler.gate=soft"]), 8)
    assert str(error.value).count("\n  - ") == 2


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is not None, reason="Transformer Engine is installed"
)
def test_a_missing_transformer_engine_is_an_error():
    with pytest.raises(ValueError, match="not installed: install the 'gpu' extra"):
        validate(load_config(None, ["model.transformer_impl=transformer_engine"]), 8)


@pytest.mark.parametrize(
    ("overrides", "module", "named"),
    [
        (["optimizer.fused_adam=transformer_engine"], "transformer_engine", "install the 'gpu' extra"),
        (["optimizer.fused_adam=apex"], "apex", "NVIDIA apex is not installed"),
        (
            ["parallel.gradient_accumulation_fusion=true"],
            "fused_weight_gradient_mlp_cuda",
            "impl=local, but",
        ),
        (
            ["parallel.cross_entropy_loss_fusion=true", "parallel.cross_entropy_fusion_impl=te"],
            "transformer_engine",
            "cross_entropy_fusion_impl=te, but",
        ),
    ],
)
def test_missing_kernels_are_an_error(overrides, module, named):
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    config = load_config(None, overrides)
    with pytest.raises(ValueError, match=named):
        validate(config, 8)
    validate(config, 8, here=False)


def test_a_run_on_other_machines_needs_nothing_installed_here():
    config = load_config(None, ["model.transformer_impl=transformer_engine", "data.decoder=dali"])
    validate(config, 8, here=False)
    config.training.precision = "fp32"
    with pytest.raises(ValueError, match="in bf16 only"):
        validate(config, 8, here=False)


def test_the_padded_vocabulary_does_not_depend_on_the_layout():
    assert load_config(None, ["model.language.vocab_size=128258"]).model.language.padded_vocab_size == 128384
