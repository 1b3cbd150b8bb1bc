"""How long a study takes: estimated from a few steps, corrected as it runs."""

import io

import pytest
from rich.console import Console

from composer_attn.runs.components.variants import Variant
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.study.outlook import Outlook, in_words
from composer_attn.runs.study.progress import Board, State
from composer_attn.runs.study.timing import estimate, not_timed, steps_of
from tests.runs.runs_on_disk import step_times, write_run

DATA = {"name": "digits", "split": "test"}
# A step of 2 s, 10 batches an epoch; an evaluation has 2 batches of 0.5 s; building takes 5 s.
TIMES = step_times((2.0, 2.0, 9.0))


def config(**changes) -> RunConfig:
    return RunConfig(**({"max_duration": "3ep", "batch_size": 64, "eval_dataset": DATA} | changes))


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 5 + 30 * 2 + 3 * 2 * 0.5),
        ({"eval_dataset": None}, 5 + 30 * 2),
        ({"max_duration": "7ba"}, 5 + 7 * 2 + 1 * 2 * 0.5),
        ({"max_duration": "640sp"}, 5 + 10 * 2 + 1 * 2 * 0.5),
        ({"eval_interval": "0.1dur"}, 5 + 30 * 2 + 10 * 2 * 0.5),
        ({"eval_interval": "5ba"}, 5 + 30 * 2 + 6 * 2 * 0.5),
    ],
)
def test_an_estimate_is_that_of_steps_and_evaluations(changes, seconds):
    assert estimate(config(**changes), TIMES) == pytest.approx(seconds)


def test_loading_counts_unless_workers_do_it_meanwhile():
    slow = step_times((2.0, 2.0, 2.0), loading_seconds=6.0)
    alone = config(eval_dataset=None, train_dataset={"name": "digits"})
    assert estimate(alone, slow) == pytest.approx(5 + 30 * 8)
    two = config(eval_dataset=None, train_dataset={"name": "digits", "num_workers": 2})
    assert estimate(two, slow) == pytest.approx(5 + 30 * 3)  # the workers are the slower part
    ten = config(eval_dataset=None, train_dataset={"name": "digits", "num_workers": 10})
    assert estimate(ten, slow) == pytest.approx(5 + 30 * 2)


def test_a_stream_of_unknown_length_has_no_estimate():
    stream = step_times((2.0, 2.0), batches=None)
    assert estimate(config(), stream) is None
    assert estimate(config(max_duration="7ba", eval_dataset=None), stream) == pytest.approx(19)
    assert steps_of(config(max_duration="65sp"), None) == 2


@pytest.fixture
def runs(tmp_path):
    return [
        Variant(name, seed, config(eval_dataset=None, save_folder=str(tmp_path / f"{name}{seed}")))
        for seed in (1, 2)
        for name in ("plain", "eca")
    ]


def test_time_left_is_corrected_by_what_runs_take(runs):
    times = {"plain": TIMES, "eca": step_times((4.0, 4.0))}
    outlook = Outlook(runs, times, {})
    assert outlook.total(0.0) == pytest.approx(2 * (65 + 125))
    outlook.note(runs[0].folder, 0, 0.0, False)
    assert outlook.left(runs[0].folder, 20.0) == pytest.approx(45)
    # A third of its steps took 40 s: two thirds take 80.
    outlook.note(runs[0].folder, 10, 40.0, False)
    assert outlook.left(runs[0].folder, 40.0) == pytest.approx(80)
    outlook.note(runs[0].folder, 30, 130.0, True)
    assert outlook.left(runs[0].folder, 130.0) == 0
    # It took twice as long as estimated, and so will the others.
    assert outlook.total(130.0) == pytest.approx(2 * (125 + 65 + 125))


def test_a_run_that_goes_on_has_less_to_train(runs):
    outlook = Outlook(runs[:1], {"plain": TIMES}, {runs[0].folder: 20})
    assert outlook.total(0.0) == pytest.approx(65 / 3)
    outlook.note(runs[0].folder, 20, 0.0, False)
    outlook.note(runs[0].folder, 25, 15.0, False)
    assert outlook.left(runs[0].folder, 15.0) == pytest.approx(15)


def test_without_times_nothing_is_known(runs):
    outlook = Outlook(runs, {"plain": TIMES}, {})
    assert outlook.total(0.0) is None
    assert in_words(None) == "an unknown time"


def test_the_board_says_what_is_left(runs):
    text = io.StringIO()
    outlook = Outlook(runs, {"plain": TIMES, "eca": TIMES}, {})
    with Board(runs, Console(file=text, width=120), outlook) as board:
        board.show(runs[0], State.TRAINING)
        write_run(runs[0].folder, finished=False)
        board.show(runs[0], State.DONE)
    assert text.getvalue().splitlines() == [
        "plain, seed 1: training, about 4 min left",
        text.getvalue().splitlines()[1],
    ]
    assert text.getvalue().splitlines()[1].endswith("left")
    shown = io.StringIO()
    Console(file=shown, width=120).print(board.table())
    assert "left" in shown.getvalue().splitlines()[0]


def test_runs_are_timed_again_unless_all_were_timed_together(runs):
    for run in runs[:2]:
        write_run(run.folder, times=step_times((1.0, 2.0)))
    assert not_timed(runs) == []
    step_times((1.0, 2.0), "other").write(runs[1].folder)
    assert not_timed(runs) == runs[:2]
    (runs[1].folder / "step_times.json").unlink()
    assert not_timed(runs) == runs[:2]
    (runs[1].folder / "summary.json").unlink()  # it failed
    assert not_timed(runs) == []
