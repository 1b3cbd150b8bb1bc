"""Whether values from YAML fit annotations: only what is certainly wrong is called so."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Optional, Union

import composer.algorithms
import pytest
import torch
from composer.core import Time

from composer_attn.runs.config.annotations import annotations_of, misfit


@pytest.mark.parametrize(
    ("value", "annotation", "allowed"),
    [
        ("x", float, "float"),
        ("x", int, "int"),
        (0.5, int, "int"),
        (3, str, "str"),
        (1, bool, "bool"),
        (True, int, "int"),
        (True, float, "float"),
        (None, float, "float"),
        ([1], float, "float"),
        ({"a": 1}, str, "str"),
        ("x", int | None, "int or null"),
        ("x", Optional[bool], "bool or null"),  # noqa: UP045
        ("x", Union[float, torch.Tensor], "float"),  # noqa: UP007
        ([1], int | str | Time, "int or str"),
    ],
)
def test_plain_values_of_another_type_do_not_fit(value, annotation, allowed):
    assert misfit(value, annotation) == allowed


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, float),
        (0.1, float | torch.Tensor),
        (None, int | None),
        ("1ep", str | Time),
        ([0.9, 0.999], tuple[float, float]),
        ("x", Any),
        ("x", Literal["y"]),
        ("x", Callable),
        ("x", Sequence[str] | None),
        ("x", list),
        (["x"], str | list),
        ("x", torch.Tensor),
        (3, "float"),
    ],
)
def test_what_may_fit_fits(value, annotation):
    assert misfit(value, annotation) == ""


def test_annotations_are_of_classes_functions_and_partial_ones():
    def function(size: int, name: "str" = ""):
        return size, name

    assert annotations_of(function) == {"size": int, "name": str}
    assert annotations_of(partial(function, 3)) == {"size": int, "name": str}
    assert annotations_of(composer.algorithms.MixUp)["alpha"] is float
    assert annotations_of(torch.optim.SGD)["momentum"] is float


def test_annotations_that_cannot_be_looked_up_are_none():
    def function(size: "NotImported"):  # noqa: F821
        return size

    assert annotations_of(function) == {}
