"""Variants with arguments and names of their own: parsed, refused, kept apart in folders."""

from pathlib import Path

import pytest

from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.components.variant_specs import parse_variants, split_variants
from composer_attn.runs.components.variants import make_variants
from composer_attn.runs.config.schema import RunConfig

ENDS = "se at branch ends=squeeze_excite:placement=residual,latent_channels=0.0625"


def recipe(**changes) -> RunConfig:
    sections = {
        "model": {"name": "resnet10", "num_classes": 10},
        "train_dataset": {"name": "synthetic", "num_samples": 16, "num_classes": 10, "size": 32},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "algorithms": {"eca": {"kernel_size": 5, "min_channels": 64}},
    }
    return RunConfig(run_name="small_plain", save_folder="runs/small", **(sections | changes))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain,se,eca", ["plain", "se", "eca"]),
        (f"plain,se,{ENDS}", ["plain", "se", ENDS]),
        (f"{ENDS},eca", [ENDS, "eca"]),
        (f"{ENDS},wide=eca:kernel_size=9", [ENDS, "wide=eca:kernel_size=9"]),
        ("eca:include=[a.*,b.*],b=2,plain", ["eca:include=[a.*,b.*],b=2", "plain"]),
        ("eca:kernel_size=3, none=plain", ["eca:kernel_size=3", "none=plain"]),
        # Without arguments before it, it is a variant, if a wrong one.
        ("plain,placement=residual", ["plain", "placement=residual"]),
    ],
)
def test_commas_separate_variants_and_arguments(text, parts):
    assert split_variants(text) == parts


def test_a_variant_has_an_attention_arguments_and_a_name():
    texts = ["plain", "se", ENDS, "eca:kernel_size=3,include=[layer4.*]", "se:latent_channels=1/16"]
    plain, se, ends, eca, ratio = parse_variants(texts)
    assert (plain.attention, plain.arguments, plain.name) == ("plain", {}, "plain")
    assert (se.attention, se.arguments, se.name) == ("squeeze_excite", {}, "squeeze_excite")
    assert ends.attention == "squeeze_excite"
    assert ends.arguments == {"placement": "residual", "latent_channels": 0.0625}
    assert (ends.name, ends.slug) == ("se at branch ends", "se_at_branch_ends")
    assert eca.arguments == {"kernel_size": 3, "include": ["layer4.*"]}
    assert eca.name == "eca (kernel_size=3, include=['layer4.*'])"
    assert ratio.arguments == {"latent_channels": 0.0625}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["a=squeeze"], "unknown variant 'squeeze'; did you mean 'squeeze_excite'"),
        (["eca:kernel_size"], "must be like squeeze_excite:placement=residual"),
        (["eca:"], "must be like squeeze_excite:placement=residual"),
        (["=eca"], "must be like NAME=ATTENTION; got '=eca'"),
        (["plain:kernel_size=3"], "takes no arguments"),
        (["a=eca", "a=plain"], "different names"),
        (["a b=eca", "a_b=plain"], "must differ from the others in its letters and digits"),
        (["?!=eca"], "must differ from the others"),
        (["eca:include=[a"], "arguments of variant"),
    ],
)
def test_variants_of_another_form_are_refused(texts, says):
    with pytest.raises(ArgumentError, match=says):
        parse_variants(texts)


def test_each_setting_is_a_run_of_its_own():
    names = ["eca", "eca:kernel_size=3", "wide=eca:kernel_size=9"]
    variants = make_variants(recipe(), names, 1, Path("out"))
    assert [v.config.algorithms["eca"] for v in variants] == [
        {"kernel_size": 5, "min_channels": 64},  # of the recipe
        {"kernel_size": 3, "min_channels": 64},  # laid over it
        {"kernel_size": 9, "min_channels": 64},
    ]
    assert [v.config.variant for v in variants] == [None, None, "wide"]
    folders = ["out/eca-seed17", "out/eca_kernel_size_3-seed17", "out/wide-seed17"]
    assert [v.config.save_folder for v in variants] == folders
    assert variants[2].config.run_name == "small_wide_seed17"


@pytest.mark.parametrize("name", ["a" * 41, "one\ntwo"])
def test_a_name_for_a_legend_is_one_short_line(name):
    with pytest.raises(ConfigError, match="variant: must be one line of at most 40 characters"):
        make_variants(recipe(), [f"{name}=eca"], 1, Path("out"))


def test_a_wrong_argument_is_found_before_training():
    with pytest.raises(ConfigError, match="unknown argument of eca 'kernel'"):
        make_variants(recipe(), ["eca:kernel=3"], 1, Path("out"))
