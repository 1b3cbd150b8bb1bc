"""One base for everything the package refuses; each error is also the built-in one expected."""

import pytest

from composer_attn import errors

OWN = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and value.__module__ == errors.__name__
}
BUILT_IN = {
    "ArgumentError": ValueError,
    "PatternError": ValueError,
    "PlacementError": ValueError,
    "ModelError": RuntimeError,
    "OptimizerError": ValueError,
    "AttentionRemovedError": RuntimeError,
    "MissingExtraError": ImportError,
    "CheckpointError": ValueError,
    "TornCheckpointError": ValueError,
    "SaveError": OSError,
    "ExportError": RuntimeError,
    "RanksError": RuntimeError,
    "RunStoppedError": RuntimeError,
    "ConfigError": ValueError,
    "NothingAttendedWarning": UserWarning,
    "NothingFoldedWarning": UserWarning,
    "BackendWarning": UserWarning,
    "UntrainedAttentionWarning": UserWarning,
    "IdleGatesWarning": UserWarning,
}


def test_the_table_is_complete():
    assert set(OWN) == {"ComposerAttnError", *BUILT_IN}


@pytest.mark.parametrize(("name", "built_in"), BUILT_IN.items())
def test_each_is_also_a_built_in_one(name, built_in):
    assert issubclass(OWN[name], built_in)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name.endswith("Error")])
def test_errors_share_one_base_that_catches_nothing_else(name):
    assert issubclass(OWN[name], errors.ComposerAttnError)
    assert not issubclass(errors.ComposerAttnError, ValueError | RuntimeError)
