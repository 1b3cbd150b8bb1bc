"""A project's own attentions in a Trainer: trained, resumed, restored and detached."""

import warnings

import composer.algorithms
import numpy as np
import pytest
import torch
from composer import Trainer
from composer.algorithms.warnings import NoEffectWarning
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_attn import (
    ECA,
    Attention,
    ExcitationMonitor,
    attended_modules,
    detach_attention,
    register_attention,
)
from composer_attn.callbacks import excitations
from composer_attn.errors import ArgumentError, CheckpointError
from composer_attn.runs.training.checkpoint_safety import check_checkpoint
from tests.own_attentions import CHANNEL, NETWORKS, build, each_network, each_own, own

__all__ = ["own"]


def fit(network, algorithms, folder=None, until=4, **options):
    torch.manual_seed(0)
    model, shape, _ = build(network)
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(8, *shape, generator=draw)
    dataset = TensorDataset(images, torch.randint(5, (8,), generator=draw))
    sampler = dist.get_sampler(dataset, shuffle=True)
    model = ComposerClassifier(model, num_classes=5)
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        train_dataloader=DataLoader(dataset, batch_size=4, sampler=sampler),
        algorithms=algorithms,
        loggers=InMemoryLogger(),
        max_duration=f"{until}ba",
        save_folder=str(folder) if folder else None,
        save_interval="2ba",
        run_name="run",
        seed=3,
        device="cpu",
        progress_bar=False,
        **options,
    )
    trainer.fit()
    trainer.close()
    return trainer


def losses(trainer) -> list[float]:
    logger = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    return [float(loss) for _, loss in logger.data["loss/train/total"]]


def weights(trainer) -> dict[str, torch.Tensor]:
    return trainer.state.model.state_dict()


def attention(name, network, **arguments):
    return Attention(name, min_channels=NETWORKS[network][2], **arguments)


@each_own
@each_network
def test_it_trains_resumes_and_goes_again(own, name, network, tmp_path):
    whole = fit(network, [attention(name, network)], tmp_path / "whole")
    sites = attended_modules(whole.state.model)
    assert len(sites) >= 2
    path = tmp_path / "whole" / "ep0-ba2-rank0.pt"
    check_checkpoint(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*required_on_load.*")
        resumed = fit(network, [attention(name, network)], load_path=str(path))
    assert len(losses(whole)) == 4
    assert losses(resumed) == losses(whole)[2:]
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    detach_attention(whole.state.model, optimizers=whole.state.optimizers)
    plain = ComposerClassifier(build(network)[0], num_classes=5)
    assert weights(whole).keys() == plain.state_dict().keys()
    held = {id(p) for p in whole.state.optimizers[0].param_groups[0]["params"]}
    assert held == {id(p) for p in whole.state.model.parameters()}


@each_own
def test_a_checkpoint_restores_an_algorithm_that_is_not_passed(own, name, tmp_path):
    whole = fit("volume", [attention(name, "volume")], tmp_path)
    with pytest.warns(UserWarning, match="Automatically adding required_on_load algorithm"):
        resumed = fit("volume", [], load_path=str(tmp_path / "ep0-ba2-rank0.pt"))
    assert len(losses(whole)) == 4
    assert losses(resumed) == losses(whole)[2:]
    assert type(resumed.state.algorithms[0]) is Attention
    assert resumed.state.algorithms[0].key == name


def test_a_checkpoint_of_an_unregistered_attention_is_refused(own, registry, tmp_path):
    fit("volume", [attention("simam", "volume")], tmp_path, until=2)
    registry._registered.pop("simam")
    with pytest.raises(CheckpointError, match="that is unknown here: unknown attention 'simam'"):
        check_checkpoint(tmp_path / "ep0-ba2-rank0.pt")


@each_own
def test_a_repr_evaluates_to_an_equal_algorithm(own, name):
    algorithm = Attention(name, include="layer4.*", placement="norm", param_group=np.int64(1))
    again = eval(f"algorithms.{algorithm!r}", {"algorithms": composer.algorithms})
    assert type(again) is type(algorithm) is composer.algorithms.ComposerAttnAttention
    assert repr(again) == repr(algorithm)
    assert repr(algorithm).startswith(f"ComposerAttnAttention({name!r}, ")


def test_all_arguments_are_written_out_with_those_of_the_attention(own):
    text = repr(Attention("simam"))
    assert "regularization=0.0001" in text
    assert "squeeze='avg+max'" in repr(Attention("cbam_channel"))
    assert "start='identity'" in repr(Attention("effective_se", start="identity"))
    for written in ("min_channels=128", "placement='conv'", "fuse=True", "backend='auto'"):
        assert written in text


def test_sites_and_parameters_are_logged_under_its_name(own):
    trainer = fit("volume", [attention("effective_se", "volume")], until=1)
    logger = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    assert logger.hyperparameters["effective_se/num_layers"] == 2
    assert logger.hyperparameters["effective_se/num_parameters"] == 8 * 8 + 8 + 16 * 16 + 16


def test_what_squeezes_to_averages_is_fused(own):
    trainer = fit("volume", [attention("effective_se", "volume")], until=1)
    assert len(trainer.state.algorithms[0].fusion.fused) == 2
    trainer = fit("volume", [attention("spatial_gate", "volume")], until=1)
    assert trainer.state.algorithms[0].fusion.fused == ()


def test_it_goes_together_with_another(own):
    trainer = fit("volume", [attention("simam", "volume", include="0"), ECA(min_channels=16)])
    kinds = [type(a).__name__ for a in attended_modules(trainer.state.model).values()]
    assert kinds == ["SimAM", "EfficientChannelAttention"]


BAD = {
    "unknown": (("simma",), {}, "unknown attention 'simma'; did you mean 'simam'"),
    "not registered": ((nn.Identity,), {}, "register_attention\\(name, Identity\\) first"),
    "an argument": (("simam",), {"lambda_": 1}, "unknown argument of SimAM 'lambda_'"),
    "an optimizer": (("simam",), {"optimizers": None}, "an algorithm takes no optimizers"),
    "no value": (("activated",), {"act": nn.ReLU}, "act must consist of plain .*; got <class"),
    "a gate": (("effective_se",), {"gate": "softmax"}, "gate must be one of sigmoid"),
    "a threshold": (("simam",), {"min_channels": 0}, "min_channels must be a whole number >= 1"),
}


@pytest.mark.parametrize(("names", "arguments", "says"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_at_construction(own, names, arguments, says):
    register_attention("activated", lambda channels, act=None: nn.Identity())
    with pytest.raises(ArgumentError, match=says):
        Attention(*names, **arguments)


@pytest.mark.parametrize("name", CHANNEL)
def test_the_monitor_looks_at_channel_attentions(own, name, tmp_path):
    monitor = ExcitationMonitor("1ba", histogram=True, folder=str(tmp_path))
    trainer = fit("volume", [attention(name, "volume")], callbacks=[monitor], until=2)
    logger = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    means = [float(value) for _, value in logger.data["excitation/0/mean"]]
    assert len(means) == 2
    assert all(0 < mean < 1 for mean in means)
    assert sum(float(v[0][1]) for k, v in logger.data.items() if "/3/histogram/" in k) == (
        pytest.approx(1)
    )


@pytest.mark.parametrize("name", ["simam", "spatial_gate"])
def test_the_monitor_says_of_what_it_shows_nothing(own, name, tmp_path):
    monitor = ExcitationMonitor("1ba", folder=str(tmp_path))
    both = [attention(name, "volume", include="0"), ECA(min_channels=16)]
    kind = {"simam": "SimAM", "spatial_gate": "SpatialGate"}[name]
    with pytest.warns(NoEffectWarning, match=rf"cannot monitor 0 \({kind}\): only a Channel"):
        trainer = fit("volume", both, callbacks=[monitor], until=1)
    logger = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    seen = {key.split("/")[1] for key in logger.data if key.startswith("excitation/")}
    assert seen == {"3"}
    assert excitations.read(tmp_path) is None
