"""Names of attentions: registered, refused, and provided by installed packages."""

import sys

import pytest
from torch import nn

from composer_attn.attention import (
    EfficientChannelAttention,
    SqueezeExcitation,
    attention_names,
    find_attention,
    name_of,
    register_attention,
)
from composer_attn.errors import ArgumentError


class Own(nn.Module):
    def __init__(self, channels):
        super().__init__()


def test_ours_are_known_by_name():
    assert {"eca", "squeeze_excite"} <= set(attention_names())
    assert find_attention("eca") is EfficientChannelAttention
    assert name_of(SqueezeExcitation) == "squeeze_excite"


def test_a_registered_one_is_found_by_its_name_and_is_returned_as_it_is(registry):
    assert register_attention("own", Own) is Own
    assert find_attention("own") is Own
    assert attention_names()[-1] == "own"
    assert name_of(Own) == name_of("own") == "own"


def test_what_is_not_registered_may_be_given_as_it_is():
    assert find_attention(Own) is Own
    assert name_of(Own) is None


def test_a_name_that_is_taken_is_refused_and_stays(registry):
    register_attention("own", Own)
    with pytest.raises(ArgumentError, match=r"'own' is already regis.*test_registry\.Own"):
        register_attention("own", SqueezeExcitation)
    assert find_attention("own") is Own
    with pytest.raises(ArgumentError, match="'eca' is already registered for composer_attn"):
        register_attention("eca", Own)
    assert find_attention("eca") is EfficientChannelAttention


def test_two_of_one_place_without_a_name_of_their_own_are_two(registry):
    register_attention("own", lambda channels: nn.Identity())
    with pytest.raises(ArgumentError, match="'own' is already registered"):
        register_attention("own", lambda channels: nn.Identity())


def test_the_same_lines_run_again_replace_what_they_defined(registry):
    register_attention("own", Own)
    again = type("Own", (nn.Module,), {"__module__": __name__, "__qualname__": "Own"})
    register_attention("own", again)
    assert find_attention("own") is again


@pytest.mark.parametrize(
    "name",
    ["", "own attention", "own-attention", "2d", "plain", "composer_squeeze_excite", 3, None],
)
def test_names_that_are_not_identifiers_or_are_reserved_are_refused(registry, name):
    with pytest.raises(ArgumentError, match="must be a Python identifier, like effective_se"):
        register_attention(name, Own)
    assert name not in attention_names()


@pytest.mark.parametrize("attention", ["eca", None, 3, Own(1), [Own]], ids=repr)
def test_what_cannot_build_a_module_is_refused(registry, attention):
    with pytest.raises(ArgumentError, match=r"a class, or a function \(channels, \*\*arguments\)"):
        register_attention("own", attention)
    assert "own" not in attention_names()


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ArgumentError, match=r"unknown attention 'ecaa'; did you mean 'eca'\?"):
        find_attention("ecaa")


def install(folder, monkeypatch, registry, entries, package="theirs"):
    """Create an installed package as pip does."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[composer_attn.attentions]\n{entries}\n")
    module = "from torch import nn\nclass Theirs(nn.Identity):\n    pass\n"
    (folder / f"{package}_attention.py").write_text(module)
    monkeypatch.syspath_prepend(folder)
    registry._entry_points.cache_clear()


def test_an_installed_package_registers_attentions_which_are_imported_on_demand(
    registry, tmp_path, monkeypatch
):
    install(tmp_path, monkeypatch, registry, "theirs = theirs_attention:Theirs")
    assert "theirs" in attention_names()
    assert "theirs_attention" not in sys.modules
    assert find_attention("theirs").__name__ == "Theirs"
    assert name_of(find_attention("theirs")) == "theirs"
    del sys.modules["theirs_attention"]


def test_one_that_cannot_be_imported_is_refused_by_its_package_and_no_other_is(
    registry, tmp_path, monkeypatch
):
    install(tmp_path, monkeypatch, registry, "broken = theirs_attention:Absent", "broken_package")
    with pytest.raises(ArgumentError, match="'broken' of broken_package, theirs_attention:Absent"):
        find_attention("broken")
    assert find_attention("eca") is EfficientChannelAttention


def test_two_that_claim_a_name_are_refused(registry, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, registry, "eca = theirs_attention:Theirs")
    with pytest.raises(
        ArgumentError, match=r"'eca' is already .*: register theirs_attention\.Theirs under"
    ):
        find_attention("eca")
    del sys.modules["theirs_attention"]
