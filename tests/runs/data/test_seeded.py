"""Randomness by sample and epoch: on the CPU alone, and put back."""

import pytest
import torch

from composer_attn.runs.data.seeded import seeded


def test_numbers_determine_what_is_drawn_and_the_state_is_put_back():
    state = torch.get_rng_state()
    with seeded(1, 2, 3):
        first = torch.rand(4)
    with seeded(1, 2, 4):
        other = torch.rand(4)
    torch.rand(4)
    with seeded(1, 2, 3):
        again = torch.rand(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.set_rng_state(state)
    with pytest.raises(RuntimeError), seeded(1):
        torch.rand(-1)
    assert torch.equal(torch.get_rng_state(), state)


def test_generators_of_gpus_are_unchanged(monkeypatch):
    """Seeded, they would draw the dropout that the image read last prescribes."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with seeded(1, 2, 3):
        torch.rand(4)
    assert seeds == []
    torch.manual_seed(0)
    assert seeds == [0]
