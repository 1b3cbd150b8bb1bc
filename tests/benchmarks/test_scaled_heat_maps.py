"""Of each way of scaling, the network that goes furthest is shown."""

import pytest

from benchmarks.scaled_heat_maps import SCALED, chosen


def row(network, phi, accuracy, alpha=1.0, beta=1.0, gamma=1.0, finished=1):
    given = {"network": network, "phi": phi, "accuracy": accuracy, "finished": finished}
    return given | {"alpha": alpha, "beta": beta, "gamma": gamma}


NETWORKS = [
    row("recipe", 0, 0.9),
    row("d1", 1, 0.9, alpha=2.0),
    row("d2", 2, 0.7, alpha=2.0),
    row("dw", 1, 0.99, alpha=1.5, beta=1.1),
    row("w1", 1, 0.9, beta=1.4),
    row("w2", 2, None, beta=1.4, finished=0),
    row("r1", 1, 0.9, gamma=1.4),
    row("a1", 1, 0.9, 1.3, 1.1, 1.1),
    row("a2", 1, 0.95, 1.2, 1.1, 1.2),
]


def test_the_largest_and_of_equals_the_most_accurate_is_chosen():
    expected = {"recipe": "recipe", "deeper": "d2", "wider": "w1", "resolution": "r1"}
    assert chosen(NETWORKS) == expected | {"together": "a2"}
    assert list(chosen(NETWORKS)) == list(SCALED)


def test_a_search_that_lacks_one_cannot_be_drawn():
    with pytest.raises(ValueError, match="empty"):
        chosen(NETWORKS[:3])
