"""Shared by all tests: one thread per worker, the same seed for each test, no inherited ranks."""

import ctypes
import os

# Before torch is imported: pytest-xdist runs one worker a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def freed_memory_is_returned():
    """Return to the system what the tests of a module have freed; glibc keeps gigabytes of it."""
    yield
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.fixture
def registry():
    """Let a test register attentions that are unknown to other tests."""
    from composer_attn.attention import registry

    before = dict(registry._registered)
    yield registry
    registry._registered.clear()
    registry._registered.update(before)
    registry._entry_points.cache_clear()
