"""Sites that are attended already: the same attention is fine, a different one is a warning."""

import warnings

import pytest
from torch import nn

from composer_attn import (
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    plan_eca,
    plan_squeeze_excite,
)
from composer_attn.errors import NothingAttendedWarning


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 64, 3))


OTHERS = {
    "SE for ECA": (
        lambda m: apply_eca(m, min_channels=8),
        lambda m, **o: apply_squeeze_excite(m, min_channels=8, **o),
        "already attended by EfficientChannelAttention",
    ),
    "ECA for SE": (
        lambda m: apply_squeeze_excite(m, min_channels=8),
        lambda m, **o: apply_eca(m, min_channels=8, **o),
        "already attended by SqueezeExcitation",
    ),
}
SETTINGS = {
    "latent_channels": (apply_squeeze_excite, {"latent_channels": 16}),
    "bias": (apply_squeeze_excite, {"bias": True}),
    "kernel_size": (apply_eca, {"kernel_size": 7}),
    "gate": (apply_eca, {"gate": "tanh"}),
    "start": (apply_eca, {"start": "identity"}),
    "squeeze": (apply_squeeze_excite, {"squeeze": "max"}),
}


@pytest.mark.parametrize(("first", "second", "reason"), OTHERS.values(), ids=OTHERS)
def test_another_kind_is_named_and_warned_of(first, second, reason):
    model = network()
    first(model)
    before = attended_modules(model)
    with pytest.warns(NothingAttendedWarning, match=rf"^nothing was attended: {reason} \(2\)\n"):
        plan = second(model)
    assert [site.reason for site in plan.sites] == [reason] * 2
    assert attended_modules(model) == before


@pytest.mark.parametrize(("apply", "arguments"), SETTINGS.values(), ids=SETTINGS)
def test_the_same_kind_with_other_settings_is_warned_of(apply, arguments):
    model = network()
    apply(model, min_channels=8)
    with pytest.warns(NothingAttendedWarning, match=r"already attended, with other settings \(2\)"):
        plan = apply(model, min_channels=8, **arguments)
    assert plan.chosen == ()
    again = network()
    apply(again, min_channels=8, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply(again, min_channels=8, **arguments)


def test_a_site_that_is_as_requested_gives_no_warning():
    model = network()
    apply_eca(model, min_channels=8, include="0")
    apply_squeeze_excite(model, min_channels=8, include="2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = apply_eca(model, min_channels=8)
    assert [site.reason for site in plan.sites] == [
        "already attended",
        "already attended by SqueezeExcitation",
    ]


def test_sizes_by_pattern_are_compared_site_by_site():
    model = network()
    apply_eca(model, {"0": 3, "2": 5}, min_channels=8)
    reasons = [site.reason for site in plan_eca(model, {"0": 3, "2": 3}, min_channels=8).sites]
    assert reasons == ["already attended", "already attended, with other settings"]


def test_a_monitor_that_looked_changes_no_settings():
    model = network()
    apply_squeeze_excite(model, min_channels=8)
    for attention in attended_modules(model).values():
        attention.observer = print
        attention.observer = None
        attention.eval()
    plan = plan_squeeze_excite(model, min_channels=8)
    assert {site.reason for site in plan.sites} == {"already attended"}
