"""Figures against their written-out definitions."""

from math import log

import pytest
import torch

from composer_attn.attention import EfficientChannelAttention
from composer_attn.attention.gates import GATES, RANGES
from composer_attn.callbacks.excitation_monitor import _report
from composer_attn.callbacks.tally import FIGURES, Tally, reduce

CPU = torch.device("cpu")
# Two batches of a layer with four channels; the last channel is shut off in all but one sample.
FIRST = torch.tensor([[0.20, 0.96, 0.01, 0.02], [0.40, 0.97, 0.03, 0.01]])
SECOND = torch.tensor([[0.60, 0.50, 0.04, 0.30]])


def tally(groups: int = 0, histogram: bool = False, **arguments) -> Tally:
    return Tally(EfficientChannelAttention(4, **arguments), groups, histogram, CPU)


def test_figures_equal_written_out_formulas():
    found = tally()
    found.add(FIRST)
    found.add(SECOND)
    values = [0.20, 0.96, 0.01, 0.02, 0.40, 0.97, 0.03, 0.01, 0.60, 0.50, 0.04, 0.30]
    mean = sum(values) / 12
    means = [1.2 / 3, 2.43 / 3, 0.08 / 3, 0.33 / 3]
    shares = [m / sum(means) for m in means]
    expected = {
        "mean": mean,
        "std": (sum((v - mean) ** 2 for v in values) / 12) ** 0.5,
        "saturated_low": 5 / 12,
        "saturated_high": 2 / 12,
        "dead": 1 / 4,  # the third channel alone is below 0.05 in every sample
        "entropy": -sum(p * log(p) for p in shares) / log(4),
    }
    assert tuple(found.figures()) == FIGURES
    assert found.figures() == pytest.approx(expected, rel=1e-6)


def test_means_and_deviations_are_those_of_each_group():
    found = tally(groups=2)
    # Rows 0 and 2 are of group 0, none is of group 1.
    found.add(torch.cat([FIRST, SECOND]), (torch.tensor([0, 2]), torch.tensor([0, 0])))
    own = torch.stack([FIRST[0], SECOND[0]]).double()
    every = torch.cat([FIRST, SECOND]).double()
    torch.testing.assert_close(found.mean()[0], own.mean(0))
    torch.testing.assert_close(found.deviation()[0], own.std(0, correction=0))
    torch.testing.assert_close(found.mean()[2], every.mean(0))
    torch.testing.assert_close(found.deviation()[2], every.std(0, correction=0))
    assert found.mean()[1].isnan().all()
    assert found.samples().tolist() == [2, 0, 3]


def test_the_histogram_counts_tenths_of_the_range():
    found = tally(histogram=True)
    found.add(torch.tensor([[0.0, 0.05, 0.95, 1.0]]))
    shares = found.histogram()
    assert next(iter(shares)) == "0.0-0.1"
    assert shares["0.0-0.1"] == shares["0.9-1.0"] == 0.5
    assert sum(shares.values()) == 1
    assert tally().histogram() == {}


@pytest.mark.parametrize("start", GATES)
@pytest.mark.parametrize("gate", GATES["paper"])
def test_saturated_is_what_is_near_the_ends_of_the_gates_own_range(gate, start):
    low, high = RANGES[start][gate]
    ends = GATES[start][gate](torch.tensor([[-100.0, 0.0, 0.0, 100.0]]))
    assert ends[0, 0] == low
    assert ends[0, 3] == (high if high < float("inf") else ends.max())
    found = tally(gate=gate, start=start)
    found.add(ends)
    figures = found.figures()
    # Of a ReLU from 0 the two in the middle are at the low end as well.
    assert figures["saturated_low"] == (0.75 if (gate, start) == ("relu", "paper") else 0.25)
    assert figures["saturated_high"] == (0 if gate == "relu" else 0.25)


def test_half_precision_is_summed_in_double():
    found = tally()
    scales = torch.full((4096, 4), 0.1, dtype=torch.bfloat16)
    found.add(scales)
    assert found.sums.dtype == torch.float64
    assert found.figures()["mean"] == float(scales[0, 0])
    assert found.figures()["std"] == pytest.approx(0, abs=1e-7)


def test_one_channel_and_no_excitation_at_all_have_no_entropy():
    single = Tally(EfficientChannelAttention(1), 0, False, CPU)
    single.add(torch.tensor([[0.5]]))
    nothing = tally()
    nothing.add(torch.zeros(2, 4))
    assert single.figures()["entropy"] == nothing.figures()["entropy"] == 0
    assert nothing.figures()["dead"] == 1


def test_even_channels_have_the_entropy_1():
    found = tally()
    found.add(torch.full((3, 4), 0.5))
    assert found.figures()["entropy"] == pytest.approx(1)


def test_reducing_alone_changes_nothing_and_takes_none():
    found = tally(groups=1, histogram=True)
    found.add(FIRST)
    before = (found.sums.clone(), found.counts.clone())
    reduce([found])
    assert torch.equal(found.sums, before[0])
    assert torch.equal(found.counts, before[1])
    reduce([])


def test_scales_by_position_count_as_their_samples_average():
    of_two = tally(2)
    scales, labels = torch.rand(2 * 9, 4), torch.tensor([0, 1])
    members = (torch.tensor([0, 1]), torch.tensor([0, 1]))
    _report(of_two, labels, members, True, scales)
    assert of_two.samples().tolist() == [1, 1, 2]
    torch.testing.assert_close(of_two.mean()[0].float(), scales[:9].mean(0))
