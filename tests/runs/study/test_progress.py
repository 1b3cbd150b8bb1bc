"""What a study shows while it runs."""

import io

from rich.console import Console

from composer_attn.runs.components.variants import Variant
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.study.progress import Board, State
from tests.runs.runs_on_disk import write_run


def variant(folder, name: str) -> Variant:
    return Variant(name, 17, RunConfig(save_folder=str(folder / name)))


def shown(board: Board) -> str:
    text = io.StringIO()
    Console(file=text, width=100).print(board.table())
    return text.getvalue()


def test_the_table_says_how_far_each_run_is(tmp_path):
    runs = [variant(tmp_path, name) for name in ("plain", "eca", "squeeze_excite")]
    write_run(tmp_path / "plain", accuracy=0.5)
    board = Board(runs, Console(file=io.StringIO()))
    with board:
        board.show(runs[0], State.DONE)
        board.show(runs[1], State.TRAINING)
    rows = {line.split()[1]: line.split() for line in shown(board).splitlines() if "17" in line}
    assert rows["plain"][5:12:2] == ["done", "2", "50.0%", "1.000"]
    assert rows["eca"][5] == "training"
    assert rows["squeeze_excite"][5] == "waiting"


def test_without_a_terminal_it_prints_a_line_for_each_change(tmp_path):
    run, text = variant(tmp_path, "eca"), io.StringIO()
    with Board([run], Console(file=text)) as board:
        board.show(run, State.TRAINING)
        board.show(run, State.TRAINING)
        write_run(tmp_path / "eca", "eca", accuracy=0.5)
        board.show(run, State.TRAINING)
        board.show(run, State.FAILED)
    assert text.getvalue().splitlines() == [
        "eca, seed 17: training",
        "eca, seed 17: training, epoch 2, accuracy 50.0%, loss 1.000",
        "eca, seed 17: failed, epoch 2, accuracy 50.0%, loss 1.000",
    ]


def test_on_a_terminal_the_table_stays_up_to_date(tmp_path):
    run, text = variant(tmp_path, "eca"), io.StringIO()
    with Board([run], Console(file=text, force_terminal=True, width=100)) as board:
        board.show(run, State.TRAINING)
        board.show(run, State.DONE)
    assert "waiting" in text.getvalue()
    assert "training" in text.getvalue()
    assert "done" in text.getvalue()
