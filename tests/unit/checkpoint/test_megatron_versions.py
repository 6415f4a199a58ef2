"""What differs between the two versions of Megatron-Core, under the one that is installed."""

import inspect
import re

import pytest
from megatron.core import dist_checkpointing
from packaging.version import Version

from megatron_focus.diagnosis.packages import installed_version
from megatron_focus.diagnosis.requirements import fits, project_requirements
from megatron_focus.parallel import megatron_versions
from megatron_focus.parallel.megatron_versions import SAVE_OPTIONS, check_readable


def test_the_installed_version_is_the_one_pinned_for_this_python():
    (pin,) = (pin for pin in project_requirements() if pin.name == "megatron-core")
    assert fits(installed_version("megatron-core"), pin.versions)
    assert (Version(installed_version("megatron-core")) >= Version("0.19")) == megatron_versions._IS_0_19


def test_options_of_a_save_are_megatrons_own():
    # Where Megatron has other writers, the one that this project waits for is asked for.
    parameters = inspect.signature(dist_checkpointing.save).parameters
    assert ({"async_strategy": "mcore"} if "async_strategy" in parameters else {}) == SAVE_OPTIONS


@pytest.mark.parametrize("newer", [False, True])
def test_a_checkpoint_of_the_newer_version_is_refused_by_the_older_one(tmp_path, monkeypatch, newer):
    """The newer one keeps plain values among the tensors and writes no common.pt."""
    monkeypatch.setattr(megatron_versions, "_IS_0_19", newer)
    (tmp_path / "metadata.json").touch()
    if newer:
        check_readable(tmp_path)
    else:
        with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))} was written with megatron-core 0\.19"):
            check_readable(tmp_path)
    (tmp_path / "common.pt").touch()
    check_readable(tmp_path)
