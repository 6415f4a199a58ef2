import pytest

from tests.unit.diagnosis.run_folder import write_run_folder


@pytest.fixture(scope="module")
def run_yaml(tmp_path_factory):
    """A configuration all of whose files are in order."""
    return write_run_folder(tmp_path_factory.mktemp("run") / "files")
