"""Checkpoints as weights: with and without attention, ours and Composer's own."""

import composer.algorithms
import pytest
import torch
from composer.algorithms.squeeze_excite import SqueezeExciteConv2d
from composer.utils import export_for_inference

from composer_attn import ECA, attended_modules, detach_attention
from tests.algorithms.training import (
    ALGORITHMS,
    FUNCTIONS,
    assert_same,
    classifier,
    data,
    each_algorithm,
    trainer,
    weights,
)

WEIGHTS_ONLY = {"load_weights_only": True, "load_strict_model_weights": False}

each_strictness = pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
each_passing = pytest.mark.parametrize("passed", [True, False], ids=["passed", "not passed"])


def composers_own():
    return composer.algorithms.SqueezeExcite(latent_channels=4, min_channels=64)


def trained(folder, algorithms, network="residual", **options):
    """Train a little; return the Trainer and the path of what it saved."""
    run = trainer(algorithms, network=network, save_folder=str(folder), **options)
    run.fit()
    run.close()
    return run, str(folder / "ep0-ba3-rank0.pt")


def saved_model(path) -> dict:
    return torch.load(path, weights_only=False)["state"]["model"]


@each_algorithm
@each_passing
@each_strictness
@pytest.mark.filterwarnings("ignore:.*Automatically adding required_on_load")
def test_weights_alone_load_into_an_attended_network(key, passed, strict, tmp_path):
    run, path = trained(tmp_path, [ALGORITHMS[key]()])
    algorithms = [ALGORITHMS[key]()] if passed else []
    options = {**WEIGHTS_ONLY, "load_strict_model_weights": strict}
    loaded = trainer(algorithms, load_path=path, **options)
    assert [type(a) for a in loaded.state.algorithms] == [type(ALGORITHMS[key]())]
    assert len(attended_modules(loaded.state.model)) == 2
    assert_same(weights(loaded.state.model), weights(run.state.model))
    assert loaded.state.timestamp.batch == 0
    loaded.fit()


@each_algorithm
def test_a_file_of_weights_alone_loads_with_the_algorithm_passed(key, tmp_path):
    run, path = trained(tmp_path, [ALGORITHMS[key]()], save_weights_only=True)
    loaded = trainer([ALGORITHMS[key]()], load_path=path, load_weights_only=True)
    assert_same(weights(loaded.state.model), weights(run.state.model))


@each_algorithm
def test_a_plain_checkpoint_loads_with_only_attention_missing(key, tmp_path):
    run, path = trained(tmp_path, [])
    loaded = trainer([ALGORITHMS[key]()], load_path=path, **WEIGHTS_ONLY)
    fresh, plain = weights(trainer([ALGORITHMS[key]()]).state.model), weights(run.state.model)
    missing, unexpected = loaded.state.model.load_state_dict(saved_model(path), strict=False)
    assert unexpected == []
    assert missing == [name for name in fresh if ".attention." in name]
    assert_same(weights(loaded.state.model), {**fresh, **plain})
    with pytest.raises(RuntimeError, match=r"Missing key.*branches\.a\.attention"):
        trainer(
            [ALGORITHMS[key]()],
            load_path=path,
            load_weights_only=True,
            load_strict_model_weights=True,
        )


@each_algorithm
@pytest.mark.filterwarnings("ignore:.*Found these unexpected keys")
def test_an_excluded_algorithm_stays_out_and_the_plain_weights_load(key, tmp_path):
    run, path = trained(tmp_path, [ALGORITHMS[key]()])
    name = type(ALGORITHMS[key]()).__name__
    loaded = trainer([], load_path=path, load_exclude_algorithms=[name], **WEIGHTS_ONLY)
    assert loaded.state.algorithms == []
    assert attended_modules(loaded.state.model) == {}
    detach_attention(run.state.model)
    assert_same(weights(loaded.state.model), weights(run.state.model))


@each_passing
@pytest.mark.parametrize("weights_only", [True, False], ids=["weights only", "whole"])
@pytest.mark.filterwarnings("ignore:.*Automatically adding required_on_load")
def test_composers_own_checkpoint_loads_as_composers_own(passed, weights_only, tmp_path):
    run, path = trained(tmp_path, [composers_own()], "resnet")
    loaded = trainer(
        [composers_own()] if passed else [],
        network="resnet",
        load_path=path,
        load_weights_only=weights_only,
        load_strict_model_weights=True,
    )
    assert [type(a) for a in loaded.state.algorithms] == [composer.algorithms.SqueezeExcite]
    kinds = [type(module) for module in loaded.state.model.modules()]
    assert kinds.count(SqueezeExciteConv2d) == 11  # all but the stem, which has 3 input channels
    assert attended_modules(loaded.state.model) == {}
    assert_same(weights(loaded.state.model), weights(run.state.model))


@each_algorithm
@pytest.mark.filterwarnings("ignore:.*Automatically adding required_on_load")
def test_our_checkpoint_never_adds_composers_algorithm(key, tmp_path):
    _, path = trained(tmp_path, [ALGORITHMS[key]()], "resnet")
    loaded = trainer([], network="resnet", load_path=path)
    kinds = {type(module) for module in loaded.state.model.modules()}
    assert SqueezeExciteConv2d not in kinds
    assert len(attended_modules(loaded.state.model)) == 12


def test_composers_own_and_ours_load_side_by_side(tmp_path):
    algorithms = [composers_own(), ECA(min_channels=64, include="conv1")]
    run, path = trained(tmp_path, algorithms, "resnet")
    assert list(attended_modules(run.state.model)) == ["module.conv1"]
    again = [composers_own(), ECA(min_channels=64, include="conv1")]
    loaded = trainer(again, network="resnet", load_path=path)
    assert_same(weights(loaded.state.model), weights(run.state.model))


@each_algorithm
def test_a_checkpoint_exports_for_inference_through_surgery_algs(key, tmp_path):
    run, path = trained(tmp_path, [ALGORITHMS[key]()])
    batch = data().tensors
    export_for_inference(
        classifier(),
        "torchscript",
        str(tmp_path / "exported.pt"),
        sample_input=(batch,),
        surgery_algs=[FUNCTIONS[key]],
        load_path=path,
        load_strict=True,
    )
    exported = torch.jit.load(tmp_path / "exported.pt")
    torch.testing.assert_close(exported(batch), run.state.model.eval()(batch))
