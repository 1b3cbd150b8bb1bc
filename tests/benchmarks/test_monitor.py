"""The benchmark of the monitor: it runs, and pairs what belongs together."""

import csv
import sys

import pytest

from benchmarks.monitor import compare
from tests.commands import ROOT, run


def test_the_cost_is_that_of_watched_steps_beside_others_shared_by_an_interval():
    found = compare([1.0, 2.0, 1.0], [1.1, 2.4, 1.3], interval=100)
    assert found["watched_step_extra"] == 0.2
    assert found["cost"] == 0.002
    assert (found["step_ms"], found["watched_step_ms"]) == (1000, 1300)


@pytest.mark.slow
def test_it_runs_and_appends_what_it_measured(tmp_path):
    results = tmp_path / "new" / "monitor.csv"
    script = ("-m", "benchmarks.monitor")
    amounts = ("--network", "resnet10", "--batch-size", "2", "--size", "32", "--steps", "8")
    done = run(sys.executable, *script, *amounts, "--results", str(results), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with results.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["attention"] for row in rows] == ["squeeze_excite", "eca"]
    for row in rows:
        assert (row["steps"], row["interval"]) == ("8", "100")
        assert float(row["step_ms"]) > 0
        assert float(row["cost"]) == pytest.approx(float(row["watched_step_extra"]) / 100, abs=1e-6)
