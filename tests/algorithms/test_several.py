"""More than one surgery on a network: two algorithms, functions beforehand, second Trainers."""

import warnings

import pytest
from composer.algorithms.warnings import NoEffectWarning, NotIntendedUseWarning

from composer_attn import ECA, SqueezeExcite, attended_modules
from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from tests.algorithms.training import (
    ALGORITHMS,
    FUNCTIONS,
    assert_same,
    attended_beforehand,
    attention_weights,
    classifier,
    each_algorithm,
    logged,
    losses,
    moved,
    sgd,
    trainer,
    weights,
)
from tests.networks import NETWORKS


def squeeze_excite(**arguments):
    return SqueezeExcite(4, min_channels=16, **arguments)


def eca(**arguments):
    return ECA(min_channels=16, **arguments)


def kinds(run) -> dict[str, type]:
    return {name: type(a) for name, a in attended_modules(run.state.model).items()}


@pytest.mark.parametrize("order", [1, -1], ids=["SE first", "ECA first"])
def test_two_algorithms_attend_the_convolutions_that_each_includes(order):
    algorithms = [squeeze_excite(include="layer[34].*"), eca(include=["conv1", "layer[12].*"])]
    run = trainer(algorithms[::order], network="resnet")
    sites = [f"module.{site}" for site in NETWORKS["resnet"].sites]
    late = ("module.layer3", "module.layer4")
    assert kinds(run) == {
        site: SqueezeExcitation if site.startswith(late) else EfficientChannelAttention
        for site in sites
    }
    found = logged(run).hyperparameters
    assert (found["squeeze_excite/num_layers"], found["eca/num_layers"]) == (6, 6)
    start = attention_weights(run.state.model)
    run.fit()
    assert moved(start, attention_weights(run.state.model)) == set(start)


def test_a_later_algorithm_passes_over_what_an_earlier_one_attended():
    run = trainer([squeeze_excite(include="branches.*"), eca()])
    assert kinds(run) == {
        "module.branches.a": SqueezeExcitation,
        "module.shortcut.0": EfficientChannelAttention,
    }
    reasons = {site.name: site.reason for site in run.state.algorithms[1].plan.sites}
    assert reasons["module.branches.a"] == "already attended by SqueezeExcitation"


@pytest.mark.parametrize(
    ("algorithms", "says"),
    [
        ([squeeze_excite(), eca()], r"ComposerAttnECA\(.*attended nothing: already attended by Sq"),
        ([eca(), squeeze_excite()], r"Excite\(.*attended nothing: already attended by Efficient"),
        ([eca(), eca(kernel_size=9)], r"attended nothing: already attended, with other settings"),
    ],
    ids=["ECA after SE", "SE after ECA", "ECA after another"],
)
def test_an_algorithm_that_finds_another_attention_everywhere_says_so(algorithms, says):
    with pytest.warns(NoEffectWarning, match=says):
        run = trainer(algorithms, network="resnet")
    assert len(set(kinds(run).values())) == 1
    assert len(run.state.algorithms[1].plan.chosen) == 0


@pytest.mark.parametrize("algorithm", [squeeze_excite, eca])
def test_the_same_algorithm_twice_attends_twice_as_much(algorithm):
    run = trainer([algorithm(include="branches.*"), algorithm(include="shortcut.*", gate="tanh")])
    attended = attended_modules(run.state.model)
    assert {name: a.gate for name, a in attended.items()} == {
        "module.branches.a": "sigmoid",
        "module.shortcut.0": "tanh",
    }


@each_algorithm
def test_a_network_attended_beforehand_stays_as_it_is_and_trains(key):
    runs = []
    for algorithms in ([], [ALGORITHMS[key](fuse=False)]):
        model = attended_beforehand(key, classifier())
        with warnings.catch_warnings():
            warnings.simplefilter("error", NoEffectWarning)
            runs.append(trainer(algorithms, model=model))
        runs[-1].fit()
    assert logged(runs[1]).hyperparameters[f"{key}/num_layers"] == 0
    assert losses(runs[0]) == losses(runs[1])
    assert_same(weights(runs[0].state.model), weights(runs[1].state.model))


@each_algorithm
@pytest.mark.parametrize("algorithm_again", [True, False])
def test_a_second_trainer_continues_with_the_same_network(key, algorithm_again):
    """Phase two, under an optimizer of its own, starts from the weights of phase one."""
    algorithm = ALGORITHMS[key]()
    first = trainer([algorithm])
    first.fit()
    model = first.state.model
    start, attention = weights(model), attended_modules(model)
    second = trainer([algorithm] if algorithm_again else [], model=model)
    assert_same(weights(model), start)
    assert attended_modules(model) == attention
    second.fit()
    expected = {name for name in start if name in attention_weights(model)}
    assert expected <= moved(start, weights(model))


def test_attention_that_an_older_optimizer_does_not_hold_is_pointed_out():
    model = classifier()
    optimizer = sgd(model)
    FUNCTIONS["eca"](model)  # without optimizers=
    with pytest.warns(NotIntendedUseWarning, match=r"attention of branches\.a, shortcut\.0.*train"):
        trainer([eca()], model=model, optimizer=optimizer)


def test_attention_in_the_optimizer_or_frozen_gives_no_warning():
    held, frozen = classifier(), classifier()
    FUNCTIONS["eca"](held)
    older = sgd(frozen)
    FUNCTIONS["eca"](frozen)
    for attention in attended_modules(frozen).values():
        attention.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotIntendedUseWarning)
        trainer([eca()], model=held, optimizer=sgd(held))
        trainer([eca()], model=frozen, optimizer=older)
