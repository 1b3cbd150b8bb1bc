"""Two tiny runs of one recipe, without attention and with SE, and images of digits."""

import pytest

from tests.runs.inference.conftest import CONFIG, digit_files, train_in, trained

__all__ = ["digit_files", "pair", "trained"]


@pytest.fixture(scope="session")
def pair(tmp_path_factory, trained):
    """Return the folders of a plain and an attended run."""
    folder = tmp_path_factory.mktemp("plain") / "plain"
    train_in(folder, config=CONFIG.split("algorithms:")[0].replace("tiny", "plain"))
    return folder, trained[0]
