"""One path by which settings arrive: defaults, YAML with inheritance, overrides; unknown keys refused."""

import pytest

from megatron_focus.config.loading import dump_config, load_config
from megatron_focus.config.schema import RunConfig


def write(path, text):
    path.write_text(text)
    return path


def test_later_layers_win_and_the_rest_keeps_its_default(tmp_path):
    write(tmp_path / "base.yaml", "optimizer: {lr: 1.0e-3, weight_decay: 0.1}\ntraining: {train_iters: 7}\n")
    child = write(tmp_path / "child.yaml", "base: base.yaml\noptimizer: {lr: 2.0e-3}\n")
    config = load_config(child, ["training.seed=5", "optimizer.module_lr={vision_tower: 2e-6}"])
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-3, 0.1)
    assert (config.training.train_iters, config.training.seed) == (7, 5)
    assert config.optimizer.module_lr == {"vision_tower": 2e-6}
    assert config.model == RunConfig().model


def test_of_several_bases_the_later_replaces_the_earlier(tmp_path):
    write(tmp_path / "root.yaml", "training: {seed: 1, train_iters: 1}\n")
    write(tmp_path / "one.yaml", "base: root.yaml\ntraining: {seed: 2}\noptimizer: {lr: 2.0e-3}\n")
    write(tmp_path / "two.yaml", "base: root.yaml\noptimizer: {lr: 3.0e-3}\n")
    config = load_config(write(tmp_path / "run.yaml", "base: [one.yaml, two.yaml]\ntraining: {train_iters: 9}\n"))
    # two.yaml brings root.yaml's seed along again.
    assert (config.training.seed, config.training.train_iters, config.optimizer.lr) == (1, 9, 3e-3)


def test_the_dumped_configuration_reads_back_to_the_same(tmp_path):
    config = load_config(None, ["model.language.kv_channels=64", "parallel.sequence_parallel=true"])
    assert load_config(write(tmp_path / "saved.yaml", dump_config(config))) == config


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("optimizer: {learning_rate: 1}\n", [], ["run.yaml", "optimizer.learning_rate"]),
        ("training: {train_iters: many}\n", [], ["run.yaml", "training.train_iters", "many"]),
        ("- a\n", [], ["run.yaml", "mapping"]),
        ("a: [\n", [], ["run.yaml", "YAML"]),
        ("{}", ["training.train_iter=5"], ["training.train_iter=5", "train_iter"]),
        ("{}", ["training.train_iters=x"], ["training.train_iters", "'x'"]),
        ("{}", ["training.train_iters"], ["training.train_iters", "key=value"]),
        ("base: run.yaml\n", [], ["run.yaml", "circle"]),
        ("base: 3\n", [], ["run.yaml", "'base'", "3"]),
        ("base: ''\n", [], ["run.yaml", "'base'"]),
        ("base: [[a]]\n", [], ["run.yaml", "'base'"]),
        ("{}", ["data.path=["], ["data.path=[", "YAML"]),
        ("{}", ["model=3"], ["model=3", "ModelConfig"]),
        ("data: {path: '${nowhere}'}\n", [], ["run.yaml", "nowhere"]),
    ],
)
def test_mistakes_name_file_key_and_value(tmp_path, text, overrides, parts):
    with pytest.raises(ValueError) as error:
        load_config(write(tmp_path / "run.yaml", text), overrides)
    for part in parts:
        assert part in str(error.value)


def test_a_missing_base_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        load_config(write(tmp_path / "run.yaml", "base: absent.yaml\n"))


def test_off_needs_no_quotes(tmp_path):
    """YAML 1.1 reads it as false."""
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  text_sampler:\n    mode: off\n")
    assert load_config(file).model.text_sampler.mode == "off"
    assert load_config(None, ["model.text_sampler.mode=off"]).model.text_sampler.mode == "off"
    assert load_config(None, ["model.vision_sampler.enabled=off"]).model.vision_sampler.enabled is False
