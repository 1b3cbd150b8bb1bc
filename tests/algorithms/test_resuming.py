"""Save and resume: the same losses and parameters, to the bit, as the uninterrupted run."""

import contextlib
import warnings

import pytest
from composer.optim import LinearScheduler

from composer_attn import ECA, SqueezeExcite, attended_modules
from composer_attn.errors import ArgumentError
from tests.algorithms.training import (
    ALGORITHMS,
    assert_same,
    attended_beforehand,
    classifier,
    each_algorithm,
    losses,
    trainer,
    weights,
)

INTERRUPTED_AT, END = 2, 6  # in batches, 4 of which are an epoch

autoloads = pytest.warns(UserWarning, match="Automatically adding required_on_load algorithm")


@contextlib.contextmanager
def silently():
    """Fail where Composer warns that algorithms differ, or cannot be recreated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*required_on_load.*")
        yield


def has_branches(name, module) -> bool:
    return "branches" in name


def both() -> list:
    return [
        SqueezeExcite(4, min_channels=16, include="shortcut.*"),
        ECA(min_channels=16, include="branches.*"),
    ]


def run(folder, algorithms, until=END, **options):
    """Train up to a batch; all runs decay the learning rate towards the same end."""
    found = trainer(
        algorithms,
        max_duration=f"{until}ba",
        schedulers=LinearScheduler(t_max=f"{END}ba"),
        save_folder=str(folder),
        save_interval=f"{INTERRUPTED_AT}ba",
        run_name="run",
        **options,
    )
    found.fit()
    found.close()
    return found


def checkpoint(folder) -> str:
    return str(folder / f"ep0-ba{INTERRUPTED_AT}-rank0.pt")


def assert_same_run(resumed, uninterrupted) -> None:
    assert len(losses(uninterrupted)) == END
    assert losses(resumed) == losses(uninterrupted)[INTERRUPTED_AT:]
    assert_same(weights(resumed.state.model), weights(uninterrupted.state.model))


@each_algorithm
@pytest.mark.parametrize("passed", [True, False], ids=["passed", "not passed"])
@pytest.mark.parametrize("auto", [True, False], ids=["autoresume", "load_path"])
def test_a_resumed_run_is_the_uninterrupted_run(key, passed, auto, tmp_path):
    whole = run(tmp_path / "whole", [ALGORITHMS[key]()])
    folder = tmp_path / "parts"
    run(folder, [ALGORITHMS[key]()], until=INTERRUPTED_AT)
    options = {"autoresume": True} if auto else {"load_path": checkpoint(folder)}
    folder = folder if auto else tmp_path / "resumed"
    with silently() if passed else autoloads:
        resumed = run(folder, [ALGORITHMS[key]()] if passed else [], **options)
    assert len(attended_modules(resumed.state.model)) == 2
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("passed", [True, False], ids=["passed", "not passed"])
def test_two_algorithms_resume_together(passed, tmp_path):
    whole = run(tmp_path / "whole", both())
    with silently() if passed else autoloads:
        path = checkpoint(tmp_path / "whole")
        resumed = run(tmp_path / "rest", both() if passed else [], load_path=path)
    assert_same_run(resumed, whole)


@each_algorithm
def test_resuming_with_the_filter_function_passed_again_is_the_uninterrupted_run(key, tmp_path):
    algorithm = ALGORITHMS[key](filter_fn=has_branches)
    whole = run(tmp_path / "whole", [algorithm])
    again = ALGORITHMS[key](filter_fn=has_branches)
    with silently():
        resumed = run(tmp_path / "rest", [again], load_path=checkpoint(tmp_path / "whole"))
    assert list(attended_modules(resumed.state.model)) == ["module.branches.a"]
    assert_same_run(resumed, whole)


@each_algorithm
@pytest.mark.parametrize("weights_only", [True, False])
def test_resuming_without_the_filter_function_is_a_clear_error(key, weights_only, tmp_path):
    run(tmp_path, [ALGORITHMS[key](filter_fn=has_branches)], until=INTERRUPTED_AT)
    model = classifier()
    options = {"load_path": checkpoint(tmp_path), "load_weights_only": weights_only}
    with pytest.raises(ValueError, match="required to successfully load") as caught:
        trainer([], model=model, load_strict_model_weights=False, **options)
    assert isinstance(caught.value.__cause__, ArgumentError)
    assert "has_branches, which a checkpoint cannot store: pass" in str(caught.value.__cause__)
    assert attended_modules(model) == {}


@each_algorithm
def test_resuming_with_other_arguments_warns_that_they_differ(key, tmp_path):
    run(tmp_path, [ALGORITHMS[key]()], until=INTERRUPTED_AT)
    with pytest.warns(UserWarning, match="now specified in the following forms"):
        trainer([ALGORITHMS[key](gate="tanh")], load_path=checkpoint(tmp_path))


@each_algorithm
def test_a_network_attended_beforehand_resumes_too(key, tmp_path):
    whole = run(tmp_path / "whole", [ALGORITHMS[key]()])
    model = attended_beforehand(key, classifier())
    with silently():
        resumed = run(
            tmp_path / "rest",
            [ALGORITHMS[key]()],
            model=model,
            load_path=checkpoint(tmp_path / "whole"),
        )
    assert_same_run(resumed, whole)
