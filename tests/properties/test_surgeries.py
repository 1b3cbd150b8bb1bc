"""Bad input by the thousand: a surgery succeeds in full, or is refused with nothing changed."""

import pytest
from hypothesis import given

from tests.properties.examples import examples
from tests.properties.strategies import groupings, networks, surgeries
from tests.properties.surgeries import apply_or_refuse, copies_are_alike


@examples(400)
@given(networks, surgeries(), groupings)
def test_applied_or_refused(network, surgery, grouping):
    apply_or_refuse(network, surgery, grouping)


@examples(150)
@given(networks, surgeries(wrong=False))
def test_copies_are_alike(network, surgery):
    copies_are_alike(network, surgery)


@pytest.mark.slow
@examples(5000)
@given(networks, surgeries(), groupings)
def test_many_more_are_applied_or_refused(network, surgery, grouping):
    apply_or_refuse(network, surgery, grouping)


@pytest.mark.slow
@examples(1500)
@given(networks, surgeries(wrong=False))
def test_many_more_copies_are_alike(network, surgery):
    copies_are_alike(network, surgery)
