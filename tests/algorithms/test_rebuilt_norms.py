"""Algorithms that convert norms, or break attention, are detected before training."""

import pytest
import torch
from composer.core import Algorithm, Event
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from composer_attn import attended_modules
from composer_attn.errors import AttentionRemovedError
from tests.algorithms.training import ALGORITHMS, each_algorithm, trainer


class Freezing(Algorithm):
    """Exchanges every norm for a frozen one, as detection libraries do."""

    def match(self, event, state):
        return event == Event.INIT

    def apply(self, event, state, logger):
        for module in list(state.model.modules()):
            for name, norm in list(module._modules.items()):
                if isinstance(norm, nn.BatchNorm2d):
                    frozen = FrozenBatchNorm2d(norm.num_features)
                    frozen.load_state_dict(norm.state_dict(), strict=False)
                    setattr(module, name, frozen)


class Spoiling(Algorithm):
    """Gives every convolution the class that it had."""

    def match(self, event, state):
        return event == Event.INIT

    def apply(self, event, state, logger):
        for module in state.model.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = nn.Conv2d


@each_algorithm
def test_norms_frozen_after_the_surgery_stay_attended_and_train(key):
    algorithm = ALGORITHMS[key](placement="norm")
    run = trainer([algorithm, Freezing()], network="resnet")
    attentions = attended_modules(run.state.model)
    assert len(attentions) == 12
    before = [p.clone() for a in attentions.values() for p in a.parameters()]
    run.fit()
    after = [p for a in attentions.values() for p in a.parameters()]
    assert not any(torch.equal(b, a) for b, a in zip(before, after, strict=True))


@each_algorithm
def test_attention_out_of_use_stops_the_run_before_it_trains(key):
    with pytest.raises(AttentionRemovedError, match=r"modules hold attention that their output no"):
        trainer([ALGORITHMS[key](), Spoiling()], network="resnet")
