"""Every recipe in yamls/; the digits for real."""

import pytest

from composer_attn.runs.check import load_checked
from composer_attn.runs.train import train
from tests.commands import ROOT

RECIPES = sorted((ROOT / "yamls").glob("*.yaml"))


def test_there_are_recipes():
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_without_mistakes_and_carries_its_own_name(recipe):
    assert load_checked(recipe).run_name == recipe.stem


@pytest.mark.parametrize(
    ("variant", "layers", "added"), [("plain", 0, 0), ("se", 9, 344_064), ("eca", 9, 45)]
)
def test_the_digits_recipes_reach_97_percent(variant, layers, added, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = train(load_checked(ROOT / f"yamls/digits_{variant}.yaml"))
    assert summary.metrics["accuracy"] >= 0.97
    assert summary.attended_layers == layers
    assert summary.parameters_before == 4_910_922
    assert summary.parameters_after - summary.parameters_before == added
