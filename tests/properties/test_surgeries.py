"""Bad input by the thousand: a surgery succeeds in full, or is refused with nothing changed."""

from hypothesis import HealthCheck, given, settings

from tests.properties.strategies import groupings, networks, surgeries
from tests.properties.surgeries import apply_or_refuse, copies_are_alike, twice_is_once


def examples(count: int):
    """Try so many examples, the same ones each time."""
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@examples(1000)
@given(networks, surgeries(), groupings)
def test_applied_or_refused(network, surgery, grouping):
    apply_or_refuse(network, surgery, grouping)


@examples(300)
@given(networks, surgeries(wrong=False), groupings)
def test_twice_is_once(network, surgery, grouping):
    twice_is_once(network, surgery, grouping)


@examples(300)
@given(networks, surgeries(wrong=False))
def test_copies_are_alike(network, surgery):
    copies_are_alike(network, surgery)
