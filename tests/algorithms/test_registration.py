"""Beside Composer's own algorithms: registered under our own names, overwriting nothing."""

import os
import subprocess
import sys

import composer.algorithms
import pytest

import composer_attn.algorithms
from composer_attn import ECA, SqueezeExcite
from composer_attn.algorithms.registration import register

ORDERS = {
    "composer first": "import composer.algorithms; import composer_attn",
    "composer_attn first": "import composer_attn; import composer.algorithms",
    "classes first": "from composer_attn import ECA, SqueezeExcite",
}

CHECK = """
import composer.algorithms as known, composer_attn as ours
assert known.ComposerAttnECA is ours.ECA
assert known.ComposerAttnSqueezeExcite is ours.SqueezeExcite
assert known.SqueezeExcite.__module__ == "composer.algorithms.squeeze_excite.squeeze_excite"
assert not hasattr(known, "ECA")
assert "ComposerAttnECA" not in known.__all__
"""


@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS)
def test_composer_finds_our_algorithms_whichever_is_imported_first(imports):
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\n{CHECK}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_registering_again_changes_nothing():
    before = dict(vars(composer.algorithms))
    register(composer_attn.algorithms.ComposerAttnECA, SqueezeExcite)
    assert vars(composer.algorithms) == before


def test_registering_never_overwrites_composers_own():
    own = composer.algorithms.SqueezeExcite
    namesake = type("SqueezeExcite", (SqueezeExcite,), {})
    register(namesake)
    assert composer.algorithms.SqueezeExcite is own


@pytest.mark.parametrize("algorithm", [ECA, SqueezeExcite])
def test_a_class_is_known_under_the_name_that_checkpoints_hold(algorithm):
    assert algorithm.__name__ == algorithm.__qualname__
    assert getattr(composer.algorithms, algorithm.__qualname__) is algorithm
    assert not issubclass(algorithm, composer.algorithms.SqueezeExcite)
