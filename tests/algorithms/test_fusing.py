"""The algorithms fuse what they attended, after loading and before training."""

import copy

import composer.algorithms as known
import pytest
import torch
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_attn import ECA, SqueezeExcite
from composer_attn.fusion.fused_norms import is_fused
from composer_attn.ops.backends import cpp, table
from composer_attn.ops.backends.cpp_build import build
from tests.algorithms.training import (
    ALGORITHMS,
    assert_same,
    classifier,
    each_algorithm,
    logged,
    losses,
    trainer,
    weights,
)
from tests.fusion.networks import Net


def net() -> ComposerClassifier:
    torch.manual_seed(0)
    return ComposerClassifier(Net(), num_classes=5)


def batches() -> DataLoader:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(80, 3, 9, 9, generator=draw)
    labels = torch.randint(5, (80,), generator=draw)
    return DataLoader(TensorDataset(images, labels), batch_size=4)


def run_of(algorithms, **options):
    options = {"max_duration": "20ba", **options}
    return trainer(algorithms, model=net(), train_dataloader=batches(), **options)


def joined(run) -> int:
    return sum(map(is_fused, run.state.model.modules()))


@each_algorithm
def test_fusing_is_on_by_default_and_logged(key):
    algorithm = ALGORITHMS[key]()
    run = trainer([algorithm], network="resnet")
    assert len(algorithm.fusion.fused) == len(algorithm.plan.chosen) == 12
    assert algorithm.fusion.backend == "auto"
    assert logged(run).hyperparameters[f"{key}/num_fused"] == 12
    assert joined(run) == 12


@each_algorithm
@pytest.mark.parametrize(("fuse", "builds"), [(True, 1), (False, 0)])
def test_what_computes_it_is_built_before_training(key, fuse, builds, monkeypatch):
    built = []
    monkeypatch.setattr(cpp, "build", lambda source: built.append("cpp") or build(source))
    cpp.load.cache_clear()
    table._ready.cache_clear()
    run = trainer([ALGORITHMS[key](fuse=fuse)])
    assert len(built) == builds
    run.fit()
    assert len(built) == builds


@each_algorithm
def test_it_can_be_turned_off(key):
    algorithm = ALGORITHMS[key](fuse=False)
    run = trainer([algorithm], network="resnet")
    assert algorithm.fusion is None
    assert joined(run) == 0
    assert f"{key}/num_fused" not in logged(run).hyperparameters


@each_algorithm
def test_twenty_steps_have_the_losses_of_an_unfused_run(key):
    runs = [run_of([ALGORITHMS[key](fuse=f, backend="reference")]) for f in (True, False)]
    for run in runs:
        run.fit()
    found, expected = map(losses, runs)
    assert len(found) == 20
    assert found == pytest.approx(expected, rel=1e-3)
    assert joined(runs[0]) > 0


@each_algorithm
@pytest.mark.parametrize("fused_first", [True, False])
def test_checkpoints_go_from_fused_to_unfused_and_back(key, fused_first, tmp_path):
    options = {"max_duration": "4ba", "save_folder": str(tmp_path)}
    first = run_of([ALGORITHMS[key](fuse=fused_first)], **options)
    first.fit()
    first.close()
    path = str(tmp_path / "ep0-ba4-rank0.pt")
    second = run_of([ALGORITHMS[key](fuse=not fused_first)], load_path=path)
    assert_same(weights(second.state.model), weights(first.state.model))
    assert (joined(first) > 0, joined(second) > 0) == (fused_first, not fused_first)
    second.fit()


@each_algorithm
def test_a_checkpoint_restores_the_algorithm_with_its_fusing(key, tmp_path):
    first = run_of([ALGORITHMS[key]()], max_duration="4ba", save_folder=str(tmp_path))
    first.fit()
    first.close()
    again = run_of([], load_path=str(tmp_path / "ep0-ba4-rank0.pt"))
    assert joined(again) == joined(first) > 0


def test_a_repr_of_before_there_was_fusing_evaluates():
    text = "ComposerAttnECA(kernel_size=None, min_channels=16, placement='conv', param_group=None)"
    algorithm = eval(f"algorithms.{text}", {"algorithms": known})
    assert (algorithm.fuse, algorithm.backend) == (True, "auto")


def test_each_algorithm_fuses_what_is_its_own():
    own = SqueezeExcite(4, 16, include="*layers.0.*", fuse=False)
    other = ECA(min_channels=16, include="*layers.1.*")
    run = run_of([own, other])
    assert own.fusion is None
    assert {site.name.split(".")[2] for site in other.fusion.sites} == {"1"}
    run.fit(duration="2ba")
    both = ECA(min_channels=16, include="*layers.0.*"), SqueezeExcite(4, 16, backend="reference")
    run = run_of(both)
    assert {site.fused for site in both[0].fusion.sites} == {True}
    # Composer runs what comes after loading in the reverse order.
    assert both[0].fusion.backend == "reference, auto"


def test_norms_that_an_algorithm_listed_later_replaces_are_fused_as_what_they_are():
    algorithm = ECA(min_channels=16)
    ghost, model = known.GhostBatchNorm(ghost_batch_size=2), classifier("resnet")
    options = {"network": "resnet", "max_duration": "2ba"}
    fused = trainer([algorithm, ghost], model=copy.deepcopy(model), **options)
    plain = trainer([ECA(min_channels=16, fuse=False), ghost], model=model, **options)
    norms = {site.norm for site in algorithm.fusion.fused}
    assert norms
    kinds = {type(fused.state.model.get_submodule(name)).__name__ for name in norms}
    assert kinds == {"FusedGhostBatchNorm2d"}
    for run in (fused, plain):
        run.fit()
    # Statistics of two samples, some of them of single positions, amplify rounding in a step.
    assert losses(fused)[0] == pytest.approx(losses(plain)[0], rel=1e-5)
    assert losses(fused)[1] == pytest.approx(losses(plain)[1], rel=1e-3)


@each_algorithm
def test_a_second_trainer_fuses_again_and_a_run_that_only_evaluates_is_fused_too(key):
    run = run_of([ALGORITHMS[key]()])
    run.fit()
    options = {"train_dataloader": None, "max_duration": None}
    again = trainer([ALGORITHMS[key]()], model=run.state.model, **options)
    assert joined(again) == joined(run) > 0
    again.eval(batches())


@each_algorithm
def test_a_compiled_trainer_trains_the_same(key):
    torch._dynamo.reset()
    algorithms = [ALGORITHMS[key](backend="reference") for _ in range(2)]
    plain = run_of(algorithms[:1], max_duration="3ba")
    compiled = run_of(algorithms[1:], max_duration="3ba", compile_config={"backend": "aot_eager"})
    for run in (plain, compiled):
        run.fit()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


def test_what_cannot_be_fused_is_reported_and_trains(caplog):
    class Freezing(known.LabelSmoothing):
        """Extends the class of a module between our surgery and the end of loading."""

        def match(self, event, state):
            return event.value == "before_load"

        def apply(self, event, state, logger):
            state.model.module.conv1.compile(backend="eager")

    algorithm = ECA(min_channels=8)
    with caplog.at_level("WARNING", logger="composer_attn"):
        run = run_of([algorithm, Freezing()])
    assert algorithm.fusion is None
    assert "fuses nothing: module.conv1 is a OptimizedModule" in caplog.text
    run.fit(duration="1ba")
    assert isinstance(run.state.model.module.conv1, nn.Conv2d)
