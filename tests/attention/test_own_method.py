"""A method of one module alone goes with its copies, and does not keep it alive."""

import copy
import gc
import pickle
import weakref

import pytest
from torch import nn

from composer_attn.attention.own_method import OwnMethod


def width(layer, factor=1):
    return factor * layer.in_features


def with_method(features=3):
    layer = nn.Linear(features, 2)
    layer.width = OwnMethod(layer, width)
    return layer


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_a_method_of_their_own(clone):
    layer = nn.Sequential(with_method())
    duplicate = clone(layer)
    duplicate[0].in_features = 5
    assert duplicate[0].width(factor=2) == 10
    assert layer[0].width() == 3


def test_a_method_copied_alone_stays_with_its_module():
    layer = with_method()
    assert copy.deepcopy(layer.width)() == 3


def test_a_module_does_not_outlive_its_last_reference():
    layer = with_method()
    gone = weakref.ref(layer)
    gc.disable()
    try:
        del layer
        assert gone() is None
    finally:
        gc.enable()
