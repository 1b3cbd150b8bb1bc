"""Fused equals unfused, whatever a forward does with the outputs of its modules."""

import copy
import random

import pytest
import torch
from torch import nn

from composer_attn.errors import ModelError
from composer_attn.functional import fuse_attention
from tests.fusion.programs import CHANNELS, IN_PLACE, Random, draw, outcome, part
from tests.surgeries import SURGERIES

MODES = ("train", "train", "eval", "no_grad", "inference")


def nets(surgery: str, placement: str, backend: str) -> tuple[Random, Random]:
    torch.manual_seed(0)
    plain = Random().double()
    for norm in (part(plain, "norms", i) for i in range(3)):
        for tensor in (norm.weight, norm.running_mean):
            nn.init.normal_(tensor)
        nn.init.normal_(norm.bias, std=0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    options = {"latent_channels": 2} if surgery == "squeeze_excite" else {}
    SURGERIES[surgery].apply(plain, min_channels=CHANNELS, placement=placement, **options)
    fused = copy.deepcopy(plain)
    plan = fuse_attention(fused, backend=backend)
    assert [bool(site.addition and site.activation) for site in plan.fused] == [True] * 3
    return plain, fused


def compare(plain: Random, fused: Random, program: list, x: torch.Tensor, mode: str) -> bool:
    """Return whether a program runs; if so, check that it computes the same when fused."""
    for net in (plain, fused):
        net.train(mode == "train")
    try:
        expected = outcome(plain, program, x, mode)
    except RuntimeError:  # a gradient of what was changed in place
        return False
    if not all(value.isfinite().all() for value in expected.values()):
        return False
    found = outcome(fused, program, x, mode)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        bound = 1e-7 * max(1, float(value.double().abs().max()))
        assert float((found[name].double() - value.double()).abs().max()) <= bound, name
    return True


@pytest.mark.parametrize("placement", ["conv", "norm"])
@pytest.mark.parametrize("surgery", SURGERIES)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_any_forward_computes_the_same_when_it_is_fused(surgery, placement, backend):
    plain, fused = nets(surgery, placement, backend)
    state, ran = copy.deepcopy(plain.state_dict()), 0
    for seed in range(200):
        dice = random.Random(f"{seed} {surgery} {placement} {backend}")
        program, mode = draw(dice, dice.randint(3, 14), seed % 3 == 0), dice.choice(MODES)
        for net in (plain, fused):
            net.load_state_dict(state)
        x = torch.randn(2, CHANNELS, 3, 2, dtype=torch.float64)
        try:
            ran += compare(plain, fused, program, x, mode)
        except ModelError as error:
            # What a norm, or a sum, is still to be computed from.
            found = "changed in place" in str(error), any(n in str(program) for n in IN_PLACE)
            assert found == (True, True)
        except BaseException:
            print(f"program {seed}, {mode}: {program}")
            raise
    assert ran > 130
