"""FuseAttention: the attention that a network came with is fused in a Trainer."""

import pytest
import torch
from composer.algorithms.warnings import NoEffectWarning
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_attn import ECA, FuseAttention
from composer_attn.errors import ArgumentError
from composer_attn.fusion.fused_norms import is_fused
from composer_attn.runs.components.registry import ALGORITHMS
from tests.algorithms.training import assert_same, logged, losses, trainer, weights
from tests.fusion.own_networks import randomized, small

INTERRUPTED_AT, END = 4, 8


def model() -> ComposerClassifier:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return ComposerClassifier(randomized(nn.Sequential(small(), *head)), num_classes=4)


def batches() -> DataLoader:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(40, 3, 9, 9, generator=draw)
    return DataLoader(TensorDataset(images, torch.arange(40) % 4), batch_size=4)


def run_of(algorithms, until=END, **options):
    made = trainer(
        algorithms, model=model(), train_dataloader=batches(), max_duration=f"{until}ba", **options
    )
    made.fit()
    return made


def joined(run) -> list[str]:
    return [name for name, m in run.state.model.named_modules() if is_fused(m)]


def test_it_trains_as_without_and_is_logged():
    algorithm = FuseAttention("reference", norms=True)
    fused, plain = run_of([algorithm]), run_of([])
    assert joined(fused) == ["module.0.norm", "module.0.attn"]
    assert [site.name for site in algorithm.fusion.fused] == ["module.0.attn"]
    assert logged(fused).hyperparameters["fuse_attention/num_fused"] == 1
    assert logged(fused).hyperparameters["fuse_attention/num_norms"] == 0
    assert losses(fused) == pytest.approx(losses(plain), rel=1e-4)
    assert list(weights(fused.state.model)) == list(weights(plain.state.model))


def test_it_recomputes_where_asked_to():
    algorithm = FuseAttention("reference", recompute=True)
    again, fused = run_of([algorithm]), run_of([FuseAttention("reference")])
    convolutions = [name.removeprefix("module.") for name in joined(again)]
    assert set(algorithm.fusion.recomputing) < {f"module.{name}" for name in convolutions}
    assert len(joined(again)) == len(joined(fused)) + len(algorithm.fusion.recomputing)
    assert losses(again) == losses(fused)
    assert_same(weights(again.state.model), weights(fused.state.model))


@pytest.mark.parametrize("passed", [True, False])
def test_it_resumes(passed, tmp_path):
    options = {"save_interval": f"{INTERRUPTED_AT}ba", "save_filename": "ba{batch}.pt"}
    whole = run_of([FuseAttention("reference")], save_folder=str(tmp_path), **options)
    path = str(tmp_path / f"ba{INTERRUPTED_AT}.pt")
    again = [FuseAttention("reference")] if passed else []
    resumed = run_of(again, load_path=path)
    assert bool(joined(resumed)) == passed  # a checkpoint does not need it
    tolerance = {} if passed else {"rtol": 1e-3, "atol": 1e-4}
    assert_same(weights(resumed.state.model), weights(whole.state.model), **tolerance)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fuse", [True, False])
def test_it_goes_beside_ours_in_either_order(first, fuse):
    ours = ECA(min_channels=4, include=["*last"], fuse=fuse, backend="reference")
    replaced = ECA(min_channels=1, replace=True, fuse=fuse, backend="reference")
    for other, expected in ((ours, ["module.0.norm", "module.0.attn"]), (replaced, None)):
        algorithms = [FuseAttention("reference"), other]
        run = run_of(algorithms if first else algorithms[::-1], until=1)
        if expected is None:  # ours stands in its place: whether it is fused, it says itself
            expected = ["module.0.norm"] if fuse else []
        assert joined(run) == expected


@pytest.mark.parametrize("first", [True, False])
def test_it_recomputes_beside_ours_in_either_order(first):
    ours = ECA(min_channels=4, include=["*last"], backend="reference")
    algorithms = [FuseAttention("reference", norms=True, recompute=True), ours]
    model = run_of(algorithms if first else algorithms[::-1], until=1).state.model
    kinds = [type(model.get_submodule(f"module.0.{name}")).__name__ for name in ("conv", "last")]
    assert kinds == ["FusedConv2d", "FusedAttendedConv2d"]


def test_in_yaml_it_has_a_name_and_its_arguments_are_checked():
    assert ALGORITHMS.table["fuse_attention"](norms=True).norms is True
    assert not ALGORITHMS.check_all("algorithms", {"fuse_attention": {}})
    assert ALGORITHMS.check_all("algorithms", {"fuse_attention": {"norm": True}})
    assert ALGORITHMS.check_all("algorithms", {"fuse_attention": {"norms": "yes"}})


def test_bad_arguments_are_refused_and_no_effect_is_warned_of():
    with pytest.raises(ArgumentError, match="backend must be one of"):
        FuseAttention("cuda")
    with pytest.raises(ArgumentError, match="norms must be True or False"):
        FuseAttention(norms=1)
    with pytest.raises(ArgumentError, match="recompute must be True or False"):
        FuseAttention(recompute="yes")
    with pytest.warns(NoEffectWarning, match="has no attention that can be fused"):
        trainer([FuseAttention("reference")], network="residual")
