"""What the README says can be typed: tools, options, sources and files that it shows exist."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from data_pipeline.sources.registry import KINDS
from megatron_focus.config.loading import load_config

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = "\n".join([*re.findall(r"```bash\n(.*?)```", TEXT, re.S), *re.findall(r"`(?:srun .*)?(python [^`]+)`", TEXT)])
COMMANDS = [shlex.split(line, comments=True) for line in SHOWN.replace("\\\n", " ").splitlines()]
WORDS = [word for command in COMMANDS for word in command]
TOOLS = sorted({word for word in WORDS if re.fullmatch(r"tools/\w+\.py", word)})
LINKS = re.findall(r"\]\(([^):]+)\)", TEXT)
PATHS = re.findall(r"`((?:examples|tools|slurm|megatron_focus|data_pipeline|tests)/[\w/.-]+)`", TEXT)


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_know_the_options_shown(tool, capsys):
    with pytest.raises(SystemExit) as ended:
        import_module(tool.removesuffix(".py").replace("/", ".")).main(["--help"])
    assert ended.value.code == 0
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert {word for command in COMMANDS if tool in command for word in command if word.startswith("--")} <= known


def test_every_tool_is_shown():
    assert {f"tools/{path.name}" for path in (ROOT / "tools").glob("[a-z]*.py")} == set(TOOLS)


def test_sources_shown_are_all_there_are():
    specs = [command[i + 1] for command in COMMANDS for i, word in enumerate(command) if word == "--source"]
    assert {spec.partition("=")[0] for spec in specs} == KINDS.keys() - {"parquet"}  # that one is for any other set


@pytest.mark.parametrize("path", sorted({*LINKS, *PATHS}))
def test_files_named_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("config", sorted({w for w in WORDS if re.fullmatch(r"examples/.*\.yaml", w)}))
def test_configurations_shown_load(config):
    load_config(ROOT / config)
