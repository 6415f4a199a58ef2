import shutil

import pytest

from examples.sample_sets.make import make


@pytest.fixture(scope="session")
def sample_specs(tmp_path_factory):
    """The sample folder of every kind, as open_source takes it. Not to be changed: copy what a test damages."""
    return make(tmp_path_factory.mktemp("sources") / "samples")


@pytest.fixture
def copied(tmp_path, sample_specs):
    """Copies the sample folder of a kind and gives the folder and its spec."""

    def copy(kind):
        source = sample_specs[kind].partition("=")[2].partition(",")[0]
        shutil.copytree(source, tmp_path / kind)
        return tmp_path / kind, f"{kind}={tmp_path / kind}"

    return copy
