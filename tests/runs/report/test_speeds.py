"""Speeds: of steps in turns, of training where there are none, and never of both together."""

import json

import pytest

from composer_attn.runs.report import write_report
from composer_attn.runs.report.compare import compare
from composer_attn.runs.report.cost_plots import frontier
from composer_attn.runs.report.headline import headline
from composer_attn.runs.report.records import find_records
from composer_attn.runs.report.style import time_unit
from tests.runs.runs_on_disk import step_times, write_run

TIMES = "\N{MULTIPLICATION SIGN}"
PLAIN = (0.10, 0.20, 0.10, 0.40, 0.10)
ECA = (0.12, 0.22, 0.11, 0.44, 0.125)


@pytest.fixture
def runs(tmp_path):
    """Two variants that were measured in turns, on a machine whose load varied."""
    write_run(tmp_path / "runs" / "plain", times=step_times(PLAIN), speed=100.0)
    write_run(tmp_path / "runs" / "eca", "eca", times=step_times(ECA), speed=74.0)
    return tmp_path / "runs"


def test_steps_are_compared_round_by_round(runs, tmp_path):
    write_report([runs], tmp_path / "out")
    plain, eca = json.loads((tmp_path / "out" / "results.json").read_text())["variants"]
    assert (plain["step_seconds"], eca["step_seconds"]) == pytest.approx((0.10, 0.125))
    assert plain["step_seconds_upper_quartile"] == pytest.approx(0.20)
    # By round: 0.8333, 0.9091, 0.9091, 0.9091, 0.8; not 74 / 100, which training had.
    assert eca["speed_relative_to_plain"] == pytest.approx(0.10 / 0.11)
    assert eca["speed_relative_to_plain_lower_quartile"] == pytest.approx(0.10 / 0.12)
    assert (plain["speed_measured"], eca["speed_measured"]) == ("in turns", "in turns")
    assert eca["latency_seconds"] == pytest.approx(0.00125)
    assert eca["kept_bytes"] == int(0.12 * 2**30)


def test_the_page_says_how_and_on_what(runs, tmp_path):
    page = write_report([runs], tmp_path / "out").read_text()
    assert f"5 training steps of 64 images (3{TIMES}32{TIMES}32)" in page
    assert "on A Processor, 2 threads, fp32" in page
    assert f"0.91{TIMES}<br><small>(0.83 to 0.91)" in page
    assert (tmp_path / "out" / "plots" / "accuracy_by_latency_cost.svg").is_file()
    assert (tmp_path / "out" / "plots" / "accuracy_by_memory_cost.svg").is_file()


def test_without_such_steps_it_is_the_speed_of_training(tmp_path):
    write_run(tmp_path / "runs" / "plain", speed=100.0)
    write_run(tmp_path / "runs" / "eca", "eca", speed=80.0)
    found = compare(find_records([tmp_path / "runs"]))
    speed = found.speed(found.variants[1])
    assert (speed.relative.median, speed.how) == (pytest.approx(0.8), "while training")
    assert (
        "one run after another" in write_report([tmp_path / "runs"], tmp_path / "out").read_text()
    )


def test_steps_of_different_measurements_are_not_compared(tmp_path):
    write_run(tmp_path / "plain", times=step_times(PLAIN, "one"))
    write_run(tmp_path / "eca", "eca", times=step_times(ECA, "other"))
    found = compare(find_records([tmp_path / "plain", tmp_path / "eca"]))
    assert found.speed(found.variants[1]).relative is None
    assert found.speed(found.variants[1]).step.median == pytest.approx(0.125)


def test_the_headline_has_the_speed_of_steps_in_turns_alone(tmp_path):
    for seed, accuracy in enumerate((0.90, 0.91, 0.92)):
        times = {} if seed else {"times": step_times(PLAIN)}
        write_run(tmp_path / f"plain{seed}", None, seed, accuracy, **times)
        times = {} if seed else {"times": step_times(ECA)}
        write_run(tmp_path / f"eca{seed}", "eca", seed, accuracy + 0.05 + seed / 1000, **times)
    text = headline(compare(find_records([tmp_path])))
    assert text.endswith("Its training steps have 0.91 times the speed of plain.")
    (tmp_path / "eca0" / "step_times.json").unlink()
    assert "speed" not in headline(compare(find_records([tmp_path])))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"steps": 3}'])
def test_a_broken_file_is_left_out(runs, content):
    (runs / "eca" / "step_times.json").write_text(content)
    assert {record.variant: record.times is None for record in find_records([runs])} == {
        "eca": True,
        "plain": False,
    }


def test_the_frontier_is_what_no_other_outdoes():
    points = [
        (1.0, 90.0, "a"),
        (1.0, 91.0, "b"),
        (2.0, 89.0, "c"),
        (3.0, 91.0, "d"),
        (4.0, 92, "e"),
    ]
    assert [label for _, _, label in frontier(points)] == ["b", "e"]
    assert frontier([]) == []


def test_times_have_a_unit_that_fits():
    assert time_unit(12) == (1.0, "seconds")
    assert time_unit(600) == (1 / 60, "minutes")
    assert time_unit(90_000) == (1 / 3600, "hours")
