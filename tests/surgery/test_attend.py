"""Attend and detach a single module in place."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from composer_attn.attention import SqueezeExcitation
from composer_attn.surgery.attend import (
    attend,
    attended_class,
    detach,
    is_attended,
    original_class,
)


class Doubled(nn.Conv2d):
    def __init__(self, word, channels):
        super().__init__(3, channels, 3)
        self.word = word

    def forward(self, x, factor=2):
        return factor * super().forward(x)


class Guarded(nn.Conv2d):
    def __setattr__(self, name, value):
        if name in ("__class__", "attention"):
            raise TypeError("hands off")
        super().__setattr__(name, value)


class Refusing(nn.Conv2d):
    def __init_subclass__(cls, **options):
        raise TypeError("final")


def test_the_module_stays_and_its_class_extends_the_original():
    conv = nn.Conv2d(3, 8, 3)
    before = dict(vars(conv))
    attend(conv, SqueezeExcitation(8, 2))
    assert is_attended(conv)
    assert isinstance(conv, nn.Conv2d)
    assert type(conv).__name__ == "AttendedConv2d"
    assert original_class(conv) is nn.Conv2d
    assert vars(conv) == before
    assert "attention.fc1.weight" in conv.state_dict()


def test_detaching_gives_the_class_and_the_children_back():
    conv = nn.Conv2d(3, 8, 3)
    keys = list(conv.state_dict())
    attend(conv, SqueezeExcitation(8, 2))
    detach(conv)
    assert type(conv) is nn.Conv2d
    assert list(conv.state_dict()) == keys
    detach(conv)  # nothing left to do
    assert type(conv) is nn.Conv2d


def test_modules_of_one_class_share_one_attended_class():
    convs = [nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 1)]
    for conv in convs:
        attend(conv, SqueezeExcitation(8, 2))
    assert type(convs[0]) is type(convs[1]) is attended_class(nn.Conv2d)
    assert attended_class(Doubled) is not attended_class(nn.Conv2d)


def test_attended_classes_do_not_outlive_their_modules():
    class Passing(nn.Conv2d):
        pass

    conv = Passing(3, 8, 3)
    attend(conv, SqueezeExcitation(8, 2))
    classes = [weakref.ref(Passing), weakref.ref(type(conv))]
    del conv, Passing
    gc.collect()  # the extending class, which keeps the other alive
    gc.collect()
    assert [cls() for cls in classes] == [None, None]


def test_a_subclass_keeps_its_own_forward_and_its_arguments():
    conv = Doubled("word", 8)
    x, attention = torch.randn(2, 3, 5, 5), SqueezeExcitation(8, 2)
    plain = conv(x, factor=3)
    attend(conv, attention)
    assert torch.equal(conv(x, factor=3), attention(plain))
    assert torch.equal(conv(x), attention(nn.Conv2d.forward(conv, x) * 2))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_subclass_are_attended_and_whole(clone):
    conv = Doubled("word", 8)
    attend(conv, SqueezeExcitation(8, 2))
    duplicate, x = clone(conv), torch.randn(2, 3, 5, 5)
    assert type(duplicate) is type(conv)
    assert duplicate.word == "word"
    assert torch.equal(duplicate(x), conv(x))
    detach(duplicate)
    assert type(duplicate) is Doubled
    assert "attention" in conv._modules


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_works(protocol):
    conv = nn.Conv2d(3, 8, 3)
    attend(conv, SqueezeExcitation(8, 2))
    duplicate, x = pickle.loads(pickle.dumps(conv, protocol)), torch.randn(2, 3, 5, 5)
    assert torch.equal(duplicate(x), conv(x))


def test_a_class_that_guards_its_attributes_can_be_attended():
    conv = Guarded(3, 8, 3)
    attend(conv, SqueezeExcitation(8, 2))
    assert is_attended(conv)
    detach(conv)
    assert type(conv) is Guarded


def test_a_class_that_cannot_be_extended_is_unchanged():
    conv = Refusing(3, 8, 3)
    with pytest.raises(TypeError, match="final"):
        attend(conv, SqueezeExcitation(8, 2))
    assert type(conv) is Refusing
    assert list(conv._modules) == []
