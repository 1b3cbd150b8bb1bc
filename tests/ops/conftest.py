"""Fixtures of the tests of regions that are computed in whole stages."""

from functools import partial

import pytest

from composer_attn.ops import region_sites
from composer_attn.ops.backends import cpp_region

CALLS = ("normalize", "attend", "write", "write_sum", "gradient", "sum_gradient")


@pytest.fixture
def region_calls(monkeypatch) -> list[str]:
    """Names of the whole-stage calls, in their order."""
    made = []

    def counted(name, run, *given):
        made.append(name)
        return run(*given)

    for name in CALLS:
        run = partial(counted, name, getattr(cpp_region, name))
        monkeypatch.setattr(cpp_region, name, run)
    return made


@pytest.fixture
def general_stages(monkeypatch):
    """Run a function with the general stages alone."""

    def run(function, *given):
        with monkeypatch.context() as without:
            without.setattr(region_sites, "find_region", lambda name, x: None)
            return function(*given)

    return run
