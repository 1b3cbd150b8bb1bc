"""Training with a network's own attention replaced, and resuming without passing it again."""

import pytest
import torch
import torchvision
from composer.models import ComposerClassifier
from torch import nn

from composer_attn import ECA, SqueezeExcite, attended_modules
from composer_attn.errors import PlacementError
from tests.algorithms.training import ALGORITHMS, assert_same, each_algorithm, trainer, weights
from tests.algorithms.training import losses as losses_of


def with_own_se() -> ComposerClassifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        torchvision.ops.SqueezeExcitation(16, 4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    return ComposerClassifier(network, num_classes=5)


@each_algorithm
def test_a_run_that_replaces_resumes_without_the_algorithm_passed(key, tmp_path):
    options = {"save_interval": "2ba", "max_duration": "4ba"}
    algorithm = ALGORITHMS[key](replace=True, squeeze="max")
    assert "replace=True" in repr(algorithm)
    folder = str(tmp_path / "whole")
    whole = trainer([algorithm], model=with_own_se(), save_folder=folder, **options)
    assert list(attended_modules(whole.state.model)) == ["module.1"]
    held = whole.state.optimizers[0].param_groups[0]["params"]
    assert {id(p) for p in held} == {id(p) for p in whole.state.model.parameters()}
    before = weights(whole.state.model)
    whole.fit()
    whole.close()
    after = weights(whole.state.model)
    assert all((after[k] != before[k]).any() for k in after if ".attention." in k)

    path = str(tmp_path / "whole" / "ep0-ba2-rank0.pt")
    with pytest.warns(UserWarning, match="Automatically adding required_on_load algorithm"):
        resumed = trainer([], model=with_own_se(), load_path=path, **options)
    assert list(attended_modules(resumed.state.model)) == ["module.1"]
    resumed.fit()
    resumed.close()
    assert losses_of(resumed) == losses_of(whole)[2:]
    assert_same(weights(resumed.state.model), after)


@each_algorithm
def test_nothing_to_replace_ends_the_run_before_it_starts(key):
    with pytest.raises(PlacementError, match="no attention of its own"):
        trainer([ALGORITHMS[key](replace=True)])


def test_min_channels_in_the_repr_is_a_number():
    assert ECA().arguments["min_channels"] == SqueezeExcite().arguments["min_channels"] == 128
    assert ECA(replace=True).arguments["min_channels"] == 1
    assert ECA(min_channels=32, replace=True).arguments["min_channels"] == 32


def test_sizes_by_pattern_survive_the_repr():
    sizes = {"layer1.*": 3, "layer4.*": 7}
    algorithm = ECA(kernel_size=sizes, placement="residual", min_channels=1)
    copy = eval(repr(algorithm), {"ComposerAttnECA": ECA})
    assert repr(copy) == repr(algorithm)
    assert copy.arguments["kernel_size"] == sizes
