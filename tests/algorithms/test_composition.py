"""Composer's own algorithms beside ours, listed before and after: one table drives all."""

from collections.abc import Callable
from dataclasses import dataclass, field

import composer.algorithms as known
import pytest
import torch
import torchvision
from composer.core import Algorithm
from composer.models import ComposerClassifier
from torch.nn.utils.parametrize import is_parametrized
from torchvision.models.resnet import Bottleneck

from composer_attn import attended_modules
from composer_attn.errors import AttentionRemovedError
from tests.algorithms.training import (
    ALGORITHMS,
    assert_same,
    attention_weights,
    classifier,
    each_algorithm,
    logged,
    losses,
    moved,
    trainer,
    weights,
)

TWO_EPOCHS = {"max_duration": "2ep", "train_subset_num_batches": 2}


def bottlenecks() -> ComposerClassifier:
    network = torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10)
    return ComposerClassifier(network, num_classes=10)


@dataclass(frozen=True)
class Setting:
    """One of Composer's algorithms, and what it needs."""

    build: Callable[[], Algorithm]
    model: Callable[[], ComposerClassifier] = lambda: classifier("resnet")
    sites: int = 12
    options: dict = field(default_factory=lambda: {"max_duration": "2ba"})


SETTINGS = {
    "ChannelsLast": Setting(known.ChannelsLast),
    "CutMix": Setting(lambda: known.CutMix(alpha=1.0)),
    "EMA": Setting(lambda: known.EMA(half_life="1ba")),
    "GhostBatchNorm": Setting(lambda: known.GhostBatchNorm(ghost_batch_size=2)),
    "GradientClipping": Setting(lambda: known.GradientClipping("norm", 0.1)),
    "LabelSmoothing": Setting(lambda: known.LabelSmoothing(smoothing=0.1)),
    "LayerFreezing": Setting(lambda: known.LayerFreezing(0.0, 0.5), options=TWO_EPOCHS),
    "MixUp": Setting(lambda: known.MixUp(alpha=0.2)),
    "ProgressiveResizing": Setting(lambda: known.ProgressiveResizing(initial_scale=0.5)),
    "SAM": Setting(lambda: known.SAM(rho=0.05)),
    "SWA": Setting(
        lambda: known.SWA(swa_start="1ep", swa_end="2ep", update_interval="1ba"), options=TWO_EPOCHS
    ),
    "StochasticDepth": Setting(
        lambda: known.StochasticDepth("ResNetBottleneck", drop_rate=0.1), bottlenecks, sites=17
    ),
    "WeightStandardization": Setting(known.WeightStandardization),
}
# These build new convolutions from the weights of the old: fine before ours, not after.
REBUILDING = {
    "BlurPool": Setting(lambda: known.BlurPool(min_channels=16)),
    # Two convolutions in the place of each, and the stem, which has too few input channels.
    "Factorize": Setting(
        lambda: known.Factorize(min_channels=64, latent_channels=0.25, factorize_linears=False),
        sites=23,
    ),
}
each_setting = pytest.mark.parametrize("name", SETTINGS)
each_rebuilding = pytest.mark.parametrize("name", REBUILDING)
known_warnings = pytest.mark.filterwarnings(
    "ignore:.*has known issues", "ignore:.*layer freezing", "ignore:Some targets have less than 1"
)


def run_of(setting: Setting, algorithms: list):
    torch.manual_seed(0)
    return trainer(algorithms, network="resnet", model=setting.model(), **setting.options)


def assert_trains(run, key: str, sites: int) -> None:
    start = attention_weights(run.state.model)
    assert logged(run).hyperparameters[f"{key}/num_layers"] == sites
    assert len(attended_modules(run.state.model)) == sites
    run.fit()
    end = attention_weights(run.state.model)
    assert moved(start, end) == set(start)
    assert all(value.isfinite().all() for value in weights(run.state.model).values())


def hyperparameters(run, key: str = "") -> dict:
    """What algorithms logged (how many modules they changed, say), without ours."""
    found = logged(run).hyperparameters
    ours = (f"{key}/", "enabled_algorithms/ComposerAttn")
    return {name: value for name, value in found.items() if not name.startswith(ours)}


@each_algorithm
@each_setting
@known_warnings
def test_attention_trains_beside_composers_algorithms_and_order_makes_no_difference(key, name):
    setting = SETTINGS[name]
    runs = []
    for algorithms in ([ALGORITHMS[key](), setting.build()], [setting.build(), ALGORITHMS[key]()]):
        runs.append(run_of(setting, algorithms))
        assert_trains(runs[-1], key, setting.sites)
    assert losses(runs[0]) == losses(runs[1])
    assert_same(weights(runs[0].state.model), weights(runs[1].state.model))


@each_algorithm
@each_setting
@known_warnings
def test_composers_algorithms_change_as_much_as_without_attention(key, name):
    setting = SETTINGS[name]
    alone = run_of(setting, [setting.build()])
    for algorithms in ([ALGORITHMS[key](), setting.build()], [setting.build(), ALGORITHMS[key]()]):
        run = run_of(setting, algorithms)
        assert hyperparameters(run, key) == hyperparameters(alone, key)
        attentions = attended_modules(run.state.model).values()
        assert not any(is_parametrized(part) for a in attentions for part in a.modules())


@each_algorithm
@each_rebuilding
def test_attention_trains_after_an_algorithm_that_rebuilds_convolutions(key, name):
    setting = REBUILDING[name]
    assert_trains(run_of(setting, [setting.build(), ALGORITHMS[key]()]), key, setting.sites)


@each_algorithm
@each_rebuilding
def test_rebuilding_attended_convolutions_stops_the_run_before_it_trains(key, name):
    setting = REBUILDING[name]
    ours = {"squeeze_excite": "SqueezeExcite", "eca": "ECA"}[key]
    with pytest.raises(AttentionRemovedError) as caught:
        run_of(setting, [ALGORITHMS[key](), setting.build()])
    assert str(caught.value).startswith(f"{name} rebuilt ")
    assert f"convolutions that {ours} attended" in str(caught.value)
    assert f"List {name} first: algorithms=[{name}(...), {ours}(...)]" in str(caught.value)


@each_algorithm
def test_the_error_names_only_the_algorithm_that_rebuilt_convolutions(key):
    algorithms = [known.EMA(), ALGORITHMS[key](), known.LabelSmoothing(), known.BlurPool()]
    with pytest.raises(AttentionRemovedError, match=r"^BlurPool rebuilt"):
        trainer(algorithms, network="resnet")


@each_algorithm
def test_a_network_attended_beforehand_is_guarded_too(key):
    model = trainer([ALGORITHMS[key]()], network="resnet").state.model
    with pytest.raises(AttentionRemovedError, match=r"^BlurPool rebuilt"):
        trainer([ALGORITHMS[key](), known.BlurPool()], network="resnet", model=model)


@each_algorithm
@pytest.mark.parametrize("name", REBUILDING)
def test_rebuilding_convolutions_that_are_not_attended_is_fine(key, name):
    setting = REBUILDING[name]
    assert_trains(run_of(setting, [ALGORITHMS[key](include="conv1"), setting.build()]), key, 1)
