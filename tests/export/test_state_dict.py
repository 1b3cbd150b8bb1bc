"""Weights alone, by ``state_dict``, into a network that is built and attended afresh."""

import pytest
import torch

from composer_attn.functional import detach_attention
from tests.export.attended import attended
from tests.surgeries import each_network, each_surgery


@each_surgery
@each_network
@pytest.mark.parametrize("options", [{}, {"gate": "tanh", "start": "identity"}], ids=["", "tanh"])
def test_into_a_fresh_attended_network(surgery, network, options, tmp_path):
    model, x = attended(network, surgery, **options), network.batch()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = network.build().eval()
    surgery.apply(fresh, **options)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert fresh.load_state_dict(weights, strict=True) == ([], [])
    assert torch.equal(fresh(x), model(x))


@each_surgery
@each_network
def test_into_the_plain_network_without_the_attention(surgery, network):
    model, x = attended(network, surgery), network.batch()
    plain = network.build().eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert {"attention" in key.split(".") for key in unexpected} == {True}
    detach_attention(model)
    assert torch.equal(plain(x), model(x))
