import pytest
import torch


@pytest.fixture(autouse=True)
def forgotten():
    """Let dynamo count recompilations within one test only."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
