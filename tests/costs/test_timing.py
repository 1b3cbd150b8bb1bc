"""Actions are timed in turns, and compared round by round."""

import pytest

from composer_attn.costs import timing
from composer_attn.costs.timing import ratios, take_turns, take_turns_for


def test_ratios_are_those_of_the_same_round():
    found = ratios([2.0, 4.0, 9.0], [4.0, 4.0, 3.0])
    assert found == {"ratio": 1, "ratio_lower_quartile": 0.75, "ratio_upper_quartile": 2}


def test_every_action_has_a_turn_in_every_round_and_starts_as_often_as_others():
    calls = []
    actions = [lambda name=name: calls.append(name) for name in "abc"]
    seconds = take_turns(actions, 3)
    assert "".join(calls) == "abcbcacab"
    assert [len(own) for own in seconds] == [3, 3, 3]


def test_another_clock_can_be_read():
    ticks = iter([0.0, 2.0, 5.0, 9.0])
    assert take_turns([int, int], 1, lambda: next(ticks)) == [[2.0], [4.0]]


def test_there_are_as_many_rounds_as_the_seconds_allow(monkeypatch):
    seen = []
    actions = [lambda i=i: seen.append(i) for i in range(3)]
    durations = iter([0.5, 0.25, 0.25, *range(100)])

    def timed(action, clock=None):
        action()
        return next(durations)

    monkeypatch.setattr(timing, "timed", timed)
    times = take_turns_for(4.5, actions)  # a round takes a second: four fit
    assert seen == [0, 1, 2, 0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]
    assert [len(each) for each in times] == [4, 4, 4]
    assert times[0] == [0, 5, 7, 9]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (1e9, 60)])
def test_there_are_from_three_to_sixty_rounds(monkeypatch, seconds, rounds):
    monkeypatch.setattr(timing, "timed", lambda action, clock=None: 1.0)
    assert [len(each) for each in take_turns_for(seconds, [int, int])] == [rounds, rounds]
