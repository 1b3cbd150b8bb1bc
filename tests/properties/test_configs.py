"""Random files as run configs: each is a valid config, or a ConfigError that names it."""

import pytest
from hypothesis import given

from composer_attn.algorithms import ECA, SqueezeExcite
from composer_attn.errors import ComposerAttnError, ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.config.schema import RunConfig
from tests.properties.configs import overrides, texts
from tests.properties.examples import examples
from tests.properties.strategies import surgeries

ALGORITHMS = {"eca": ECA, "squeeze_excite": SqueezeExcite}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("configs") / "run.yaml"


def valid_or_refused(file, text, overrides) -> bool:
    file.write_bytes(text)
    try:
        config = load_checked(file, overrides)
    except ConfigError as error:
        refused = error
    else:
        assert isinstance(config, RunConfig)
        return True
    assert refused.mistakes
    lines = [str(mistake) for mistake in refused.mistakes]
    assert all(len(line.splitlines()) == 1 for line in lines)
    return False


@examples(250)
@given(texts(), overrides)
def test_a_config_is_valid_or_refused(file, text, overrides):
    valid_or_refused(file, text, overrides)


@pytest.mark.slow
@examples(2000)
@given(texts(), overrides)
def test_many_more_configs_are_valid_or_refused(file, text, overrides):
    valid_or_refused(file, text, overrides)


def built_or_refused(surgery) -> bool:
    try:
        algorithm = ALGORITHMS[surgery.name](**surgery.arguments)
    except ComposerAttnError:
        return False
    if algorithm.filter_fn is None:
        # Composer evaluates it from checkpoints, and compares it as text.
        again = eval(repr(algorithm), {type(algorithm).__name__: type(algorithm)})
        assert repr(again) == repr(algorithm)
    return True


@examples(200)
@given(surgeries())
def test_an_algorithm_is_built_or_refused(surgery):
    built_or_refused(surgery)
