"""Names of modules, and patterns over them."""

import pytest
from torch import nn

from composer_attn.errors import ArgumentError, PatternError
from composer_attn.surgery.names import as_patterns, check_patterns, matches, walk
from tests.networks import Shared

NAMES = ["module.stem", "module.layer1.0.conv1", "module.layer1.0.conv2", "module.layer10.0.conv1"]


def test_walking_lists_a_shared_module_under_each_of_its_names():
    assert [name for name, _ in walk(Shared())] == ["", "stem", "first", "second"]


def test_walking_ends_on_a_model_that_contains_itself():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.me = model
    model[0].parent = model
    assert [name for name, _ in walk(model)] == ["", "0"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer1.*", [False, True, True, False]),
        ("module.layer1.*", [False, True, True, False]),
        ("layer?.0.conv1", [False, True, False, False]),
        ("layer1*", [False, True, True, True]),
        ("*conv1", [False, True, False, True]),
        ("*.conv[12]", [False, True, True, True]),
        ("conv1", [False] * 4),
        ("Layer1.*", [False] * 4),
        ("stem", [True, False, False, False]),
    ],
)
def test_patterns_are_globs_over_the_whole_name(pattern, expected):
    for prefix in ("module.", ""):
        found = [name.replace("module.", prefix) for name in NAMES]
        assert [matches([name], [pattern]) for name in found] == expected


def test_a_module_matches_by_any_of_its_names():
    assert matches(["first", "second"], ["third", "sec*"])
    assert not matches(["first", "second"], ["third"])


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [(None, None), ("a*", ("a*",)), (["a", "b"], ("a", "b")), (iter("ab"), ("a", "b")), ([], ())],
)
def test_one_pattern_or_several(patterns, expected):
    assert as_patterns("include", patterns) == expected


@pytest.mark.parametrize("patterns", [3, [3], ["a", None], True, b"a"])
def test_other_things_than_patterns_are_errors(patterns):
    with pytest.raises(ArgumentError, match="exclude must be a glob pattern of module names, or"):
        as_patterns("exclude", patterns)


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("layer1", "layer1.0.conv1, layer1.0.conv2, layer10.0.conv1"),  # forgot the .*
        ("module.layer1.0", "layer1.0.conv1, layer1.0.conv2"),
        ("layer1.0.conv22", "layer1.0.conv2"),
        ("sten", "stem"),
    ],
)
def test_a_lost_pattern_is_an_error_that_lists_near_names(pattern, near):
    with pytest.raises(PatternError) as caught:
        check_patterns("include", [pattern], NAMES)
    start = f"include pattern {pattern!r} matches none of 4 candidates; near names: {near}"
    assert str(caught.value).startswith(start)


def test_every_lost_pattern_is_listed_and_no_other():
    with pytest.raises(PatternError) as caught:
        check_patterns("exclude", ["stem", "zzz", "layer9.*"], NAMES)
    lines = str(caught.value).splitlines()
    assert [line.split(" matches")[0] for line in lines] == [
        "exclude pattern 'zzz'",
        "exclude pattern 'layer9.*'",
    ]


def test_a_pattern_on_a_model_without_convolutions_is_lost():
    with pytest.raises(PatternError, match=r"matches none of 0 candidates$"):
        check_patterns("include", ["*"], [])


def test_found_patterns_pass():
    check_patterns("include", ["stem", "*.conv1"], NAMES)
    check_patterns("include", None, NAMES)
