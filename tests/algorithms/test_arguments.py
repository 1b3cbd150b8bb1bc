"""The algorithms before any Trainer: bad arguments, and reprs that Composer can evaluate."""

from fractions import Fraction
from functools import partial

import composer.algorithms
import numpy as np
import pytest

from composer_attn import ECA, SqueezeExcite
from composer_attn.errors import ArgumentError
from tests.algorithms.training import (
    ALGORITHMS,
    assert_same,
    classifier,
    each_algorithm,
    trainer,
    weights,
)

BAD = {
    "all": [
        ({"min_channels": 0}, "min_channels must be a whole number >= 1; got 0"),
        ({"min_channels": 12.5}, "min_channels must be a whole number >= 1; got 12.5"),
        ({"gate": "sigmoidal"}, "gate must be one of sigmoid, hard_sigmoid, tanh, relu"),
        ({"start": "zero"}, "start must be one of paper, identity; got 'zero'"),
        ({"include": 3}, "include must be a glob pattern of module names"),
        ({"exclude": ["fc", None]}, "exclude must be a glob pattern of module names"),
        ({"filter_fn": 5}, "filter_fn must be a function of"),
        ({"param_group": -1}, "param_group must be a whole number >= 0; got -1"),
        ({"param_group": "head"}, "param_group must be a whole number >= 0; got 'head'"),
        ({"fuse": "yes"}, "fuse must be True or False; got 'yes'"),
        ({"backend": "cuda"}, "backend must be one of auto, reference, "),
    ],
    "squeeze_excite": [
        ({"latent_channels": value}, f"latent_channels must be .* got {value}")
        for value in (2.9, 0, -3, True, float("nan"))
    ],
    "eca": [
        ({"kernel_size": 2}, "kernel_size must be odd"),
        ({"kernel_size": 0}, "kernel_size must be a whole number >= 1; got 0"),
        ({"gamma": 0}, "gamma must be a real number other than 0"),
        ({"b": float("inf")}, "b must be a real number"),
    ],
}

GOOD = {
    "all": [
        {},
        {"min_channels": 7, "gate": "hard_sigmoid", "start": "identity"},
        {"include": "layer4.*", "exclude": ["*.conv1", "it's 'quoted'"]},
        {"include": [], "param_group": 1},
        {"fuse": False, "backend": "reference"},
    ],
    "squeeze_excite": [{"latent_channels": 1 / 3, "bias": True}, {"latent_channels": 5}],
    "eca": [{"kernel_size": None, "gamma": 1.5, "b": -1}, {"kernel_size": 9}],
}


def cases(table: dict) -> list:
    return [
        pytest.param(key, case, id=f"{key}-{case}")
        for key in ALGORITHMS
        for case in table["all"] + table[key]
    ]


def evaluated(algorithm):
    """Evaluate a repr as Composer does when it loads a checkpoint."""
    return eval(f"algorithms.{algorithm!r}", {"algorithms": composer.algorithms})


def says_yes(name, module) -> bool:
    return True


class SaysYes:
    def __call__(self, name, module) -> bool:
        return True


@pytest.mark.parametrize(("key", "case"), cases(BAD))
def test_bad_arguments_are_refused_at_construction(key, case):
    arguments, message = case
    with pytest.raises(ArgumentError, match=message):
        ALGORITHMS[key](**arguments)


@pytest.mark.parametrize(("key", "case"), cases(GOOD))
def test_a_repr_evaluates_to_an_equal_algorithm(key, case):
    algorithm = ALGORITHMS[key](**case)
    again = evaluated(algorithm)
    assert type(again) is type(algorithm)
    assert repr(again) == repr(algorithm)
    for argument, value in case.items():
        expected = (value,) if isinstance(value, str) and argument == "include" else value
        expected = tuple(expected) if isinstance(expected, list) else expected
        held = {**again.arguments, **vars(again)}
        assert held[argument] == expected
        assert type(held[argument]) is type(expected)


@each_algorithm
def test_an_evaluated_repr_attends_and_trains_alike(key):
    algorithm = ALGORITHMS[key](gate="tanh", start="identity", exclude=["branches.*"])
    runs = [trainer([algorithm]), trainer([evaluated(algorithm)])]
    for run in runs:
        run.fit()
    first, second = (weights(run.state.model) for run in runs)
    assert set(first) > set(classifier().state_dict())
    assert_same(first, second)


@pytest.mark.parametrize(
    ("algorithm", "plain"),
    [
        (SqueezeExcite(Fraction(1, 16), np.int64(32)), SqueezeExcite(0.0625, 32)),
        (SqueezeExcite(np.float64(0.25)), SqueezeExcite(0.25)),
        (ECA(np.int32(3), gamma=np.float32(2), b=Fraction(1, 2)), ECA(3, gamma=2.0, b=0.5)),
        (ECA(include=(f"layer{i}.*" for i in "34")), ECA(include=["layer3.*", "layer4.*"])),
        (ECA(param_group=np.int64(1)), ECA(param_group=1)),
    ],
    ids=repr,
)
def test_numbers_of_other_libraries_and_iterators_leave_no_trace_in_a_repr(algorithm, plain):
    assert repr(algorithm) == repr(plain)
    assert repr(evaluated(algorithm)) == repr(plain)


@each_algorithm
@pytest.mark.parametrize(
    ("filter_fn", "name"),
    [
        (says_yes, "says_yes"),
        (lambda name, module: True, "<lambda>"),
        (SaysYes(), "SaysYes"),
        (partial(says_yes), "partial"),
    ],
    ids=["function", "lambda", "object", "partial"],
)
def test_a_filter_function_is_named_in_a_repr_which_then_refuses_to_attend(key, filter_fn, name):
    algorithm = ALGORITHMS[key](filter_fn=filter_fn)
    home = "functools" if name == "partial" else __name__
    assert f"filter_fn='{home}.{name}'" in repr(algorithm)
    again = evaluated(algorithm)
    assert repr(again) == repr(algorithm)
    with pytest.raises(ArgumentError, match=f"filter_fn is the function {home}.{name}, which"):
        trainer([again])


@each_algorithm
def test_the_state_of_an_algorithm_is_its_repr_in_plain_types(key):
    algorithm = ALGORITHMS[key]()
    assert algorithm.state_dict() == {"repr": repr(algorithm)}
    assert type(algorithm).required_on_load()
