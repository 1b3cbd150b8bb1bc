"""The benchmark of the joint passes: it runs, and its ratios are what they say."""

import csv
import sys

import pytest
import torch

from benchmarks.op import Act, Attention, Order, Site, _share, contenders
from tests.commands import ROOT, run


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("activation", [Act.RELU, Act.SILU])
def test_all_contenders_of_a_kind_compute_the_same(order, activation):
    site = Site(order, activation, Attention.ECA)
    entries = contenders(site, 16, ["reference", "auto"], "cpu")
    x = torch.randn(4, 16, 6, 6)
    plain, composer, modules, *joint = entries
    for entry in joint:
        for own, other in zip(entry.parameters, modules.parameters, strict=True):
            own.data.copy_(other.data)
        torch.testing.assert_close(entry.forward(x), modules.forward(x))
    assert plain.forward(x).shape == composer.forward(x).shape == x.shape


def test_the_share_of_bandwidth_counts_the_passes_where_a_copy_makes_two():
    assert _share([8.0, 8.0, 8.0], [2.0, 2.0, 2.0], 8) == 1.0
    assert _share([16.0, 16.0, 16.0], [2.0, 2.0, 2.0], 8) == 0.5
    assert _share([9.0, 9.0, 9.0], [2.0, 2.0, 2.0], 9) == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
def test_it_runs_and_appends_what_it_measured(tmp_path):
    amounts = ("--shapes", "2x8x6x6,2x4x5x5", "--rounds", "2", "--threads", "1")
    done = run(
        sys.executable, "-m", "benchmarks.op", *amounts, "--results", str(tmp_path / "op.csv"),
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "op.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 5
    assert {row["threads"] for row in rows} == {"1"}
    assert all(float(row["milliseconds"]) > 0 for row in rows)
    assert [row["ratio"] for row in rows[::5]] == ["1.0", "1.0"]
