"""Validation of the release's configuration, and what its code may import."""

import ast
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers

import megatron_focus.release
from megatron_focus.diagnosis.requirements import project_requirements
from megatron_focus.release.configuration_focus_llava import OLDEST_TRANSFORMERS, FocusLlavaConfig
from tests.unit.release import tiny_models as tiny


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"window": 3}, "window is 3; it must divide the 4 cells"),
        ({"scales": ["1x1", "3x3"]}, "'3x3', which does not divide the window"),
        ({"scales": ["2x2", "1x1"]}, "the finest scale stands first"),
        ({"scales": ["1x1", "1x1"]}, "each once"),
        ({"scales": []}, "at least one scale"),
        ({"scales": ["1x1", "big"]}, "'big' is neither 'discard' nor a kernel"),
        ({"gate": "soft"}, "vision_sampler.gate is 'soft'"),
        ({"global_view": "all"}, "vision_sampler.global_view is 'all'"),
        ({"score_pooling": "sum"}, "vision_sampler.score_pooling is 'sum'"),
        ({"score_scale": 0}, "vision_sampler.score_scale is 0"),
        ({"center_scores": 1}, "vision_sampler.center_scores is 1"),
        ({"windows": 4}, "unknown keys \\['windows'\\]"),
    ],
)
def test_vision_sampler_settings(vision, message):
    with pytest.raises(ValueError, match=message):
        tiny.focus_config(vision=vision)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"layer": 4}, "text_sampler.layer is 4; it must be one of the 4 layers"),
        ({"layer": -1}, "text_sampler.layer is -1"),
        ({"gamma": 0}, "text_sampler.gamma is 0"),
        ({"gama": 1}, "unknown keys \\['gama'\\]"),
    ],
)
def test_text_sampler_settings(text, message):
    with pytest.raises(ValueError, match=message):
        tiny.focus_config(text=text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {"model_type": "gpt2"}}, "'gpt2' is not supported"),
        ({"text_config": {"model_type": "mistral", "sliding_window": 64}}, "text_config.sliding_window is 64"),
        ({"vision_feature_layer": [-2, -1]}, "only one layer"),
        ({"vision_feature_select_strategy": "full"}, "only 'default' is supported"),
        ({"image_grid_pinpoints": [[56, 100]]}, "not a multiple of the tile side 56"),
        ({"instruction_start_token_ids": [[3]]}, "must be given together"),
        (
            {"instruction_start_token_ids": [3]},
            "instruction_start_token_ids has the marker 3; a marker is a list of ids",
        ),
        ({"instruction_end_token_ids": [[]]}, "instruction_end_token_ids has the marker \\[\\]"),
    ],
)
def test_architecture(change, message):
    settings = tiny.common("llama") | {"text_sampler": {"layer": 2}} | change
    with pytest.raises(ValueError, match=message):
        FocusLlavaConfig(**settings)


def test_round_trip(tmp_path):
    config = tiny.focus_config("qwen2", vision={"scales": ["1x1", "4x4"]}, text={"gamma": 0.7})
    config.save_pretrained(tmp_path)
    again = FocusLlavaConfig.from_pretrained(tmp_path)
    assert again.vision_sampler == config.vision_sampler
    assert again.text_sampler == config.text_sampler
    assert again.instruction_start_token_ids == tiny.USER_START
    assert again.image_token_id == tiny.IMAGE


CONFIGURATION = Path(megatron_focus.release.__path__[0]) / "configuration_focus_llava.py"


@pytest.mark.parametrize("version", ["3.5.1", "4.57.6", "5.20.2"])
def test_transformers_that_are_too_old(monkeypatch, version):
    """Said before anything is imported from them that they may not have."""
    old = ModuleType("transformers")
    old.__version__ = version
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(ImportError, match=rf"needs transformers 5\.21 or newer; {version} is installed"):
        runpy.run_path(str(CONFIGURATION))


@pytest.mark.parametrize("version", ["5.21.1", "5.21.0.dev0", "5.100.0", "6.0.0rc1", "10.0.0"])
def test_transformers_that_are_new_enough(monkeypatch, version):
    monkeypatch.setattr(transformers, "__version__", version)
    assert "FocusLlavaConfig" in runpy.run_path(str(CONFIGURATION))


def test_the_oldest_transformers_are_those_of_the_requirements():
    (versions,) = (r.versions for r in project_requirements() if r.name == "transformers" and r.extra is None)
    assert versions.startswith(f">={'.'.join(map(str, OLDEST_TRANSFORMERS))},")


def test_code_imports_only_what_a_user_has():
    for source in Path(megatron_focus.release.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            assert roots <= {"torch", "transformers", *sys.stdlib_module_names}, source.name
