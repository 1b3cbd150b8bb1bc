"""Interpolations are measured before they are filled in."""

import pytest
from omegaconf import OmegaConf

from composer_attn.errors import ConfigError
from composer_attn.runs.config.interpolation import LARGEST, check_interpolations
from composer_attn.runs.config.schema import load_config
from tests.runs.config.test_schema import MINIMAL


def chain(link, length=60):
    """Each entry names the one before twice."""
    return {"k0": "aaaaaaaaaa"} | {f"k{i}": link(i) for i in range(1, length)}


SWELLING = {
    "text": chain(lambda i: f"${{k{i - 1}}}${{k{i - 1}}}"),
    "mappings": chain(lambda i: {"x": f"${{k{i - 1}}}", "y": f"${{k{i - 1}}}"}),
    "lists": chain(lambda i: [f"${{k{i - 1}}}", f"${{k{i - 1}}}"]),
    # Through what an interpolation fills in itself.
    "behind": {"b0": "a"}
    | {f"a{i}": f"${{b{i}}}" for i in range(60)}
    | {f"b{i}": {"x": f"${{a{i - 1}.x}}${{a{i - 1}.x}}"} for i in range(1, 60)},
    "within": {
        "r": {"k0": "aaaaaaaaaa"}
        | {f"k{i}": f"${{q.k{i - 1}}}${{q.k{i - 1}}}" for i in range(1, 60)},
        "q": "${p}",
        "p": "${r}",
    },
    "relative": {"a": chain(lambda i: f"${{.k{i - 1}}}${{.k{i - 1}}}")},
    "items": {"a": ["aaaa", *(f"${{a[{i}]}}${{a.{i}}}" for i in range(60))]},
    "wide": {"a": "a" * 2000, "b": "${a}" * 501},
}


@pytest.mark.parametrize("content", SWELLING.values(), ids=SWELLING)
def test_what_swells_is_refused(content):
    (mistake,) = check_interpolations(content)
    assert mistake.message.startswith(f"is longer than {LARGEST:,} characters")


@pytest.mark.parametrize(
    "content",
    [
        {"a": 1, "b": "${a}", "c": ["${b}", {"d": "${c[0]}-${.e}", "e": "x"}]},
        {"a": "${oc.env:HOME}", "b": "${oc.env:NOPE,/data}/x", "c": "$5 {a}"},
        {"a": '${oc.decode:${oc.env:LR,"1e-3"}}', "d": "${oc.env:A,1}${oc.env:B,2}"},
        {"a": "${b}", "b": "${a}"},  # OmegaConf's own error
        {"a": "$${b}{c}", "b": "x", "l": list(range(9000))},
        {"a": "${missing.key}", "b": None, "c": "${..up}"},
        chain(lambda i: f"${{k{i - 1}}}${{k{i - 1}}}", 12),
    ],
)
def test_what_does_not_is_let_through(content):
    assert check_interpolations(content) == []


@pytest.mark.parametrize(
    "text", ["${oc.decode:1}", "${oc.select:a}", "${${a}}", "${a.${b}}", "${own:1}", "${a", "${}"]
)
def test_other_forms_are_refused_where_they_stand(text):
    (mistake,) = check_interpolations({"model": {"layers": [1, text]}})
    assert mistake.key == "model.layers.1"
    assert mistake.message.startswith(f"{text!r}: only ${{key}}, ${{oc.env:NAME}} and")


def test_a_chain_that_is_too_long_is_an_error_too():
    content = {f"k{i}": f"${{k{i - 1}}}" for i in range(5000, 0, -1)}
    (mistake,) = check_interpolations(content)
    assert mistake.message.startswith("holds too long a chain")
    loop = {"a": "${b.x}", "b": "${a}"}
    assert len(check_interpolations(loop)) == 1


def test_sizes_are_no_less_than_what_omegaconf_makes_of_them():
    content = chain(lambda i: f"${{k{i - 1}}}${{k{i - 1}}}", 14)
    written_out = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
    assert check_interpolations(content) == []
    assert 10 * 2**13 == len(written_out["k13"]) < LARGEST


def test_a_config_that_swells_is_an_error_within_a_moment(tmp_path):
    path = tmp_path / "config.yaml"
    links = "\n".join(f"  k{i}: ${{.k{i - 1}}}${{.k{i - 1}}}" for i in range(1, 60))
    model = f"model:\n  name: resnet10\n  k0: aaaaaaaaaaaaaaaa\n{links}\n"
    path.write_text(MINIMAL.replace("model: {name: resnet10, num_classes: 10}\n", model))
    with pytest.raises(ConfigError, match=r"is longer than 1,000,000 characters"):
        load_config(path)
