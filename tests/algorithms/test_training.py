"""The algorithms in a Trainer: what INIT does, what trains, what is logged."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from composer.algorithms.warnings import NoEffectWarning

from composer_attn import attended_modules
from composer_attn.errors import ComposerAttnError, OptimizerError, PatternError
from tests.algorithms.training import (
    ALGORITHMS,
    CLASSES,
    assert_same,
    attended_beforehand,
    attention_weights,
    classifier,
    data,
    each_algorithm,
    logged,
    moved,
    sgd,
    trainer,
    weights,
)
from tests.networks import NETWORKS

each_network = pytest.mark.parametrize("network", NETWORKS)
each_classifier = pytest.mark.parametrize("network", CLASSES)

# Output channels of the sites; an adaptive ECA has 3 weights below 128 channels, 5 below 2048.
CHANNELS = {
    "residual": [16, 16],
    "resnet": [64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512],
}
PARAMETERS = {
    "squeeze_excite": lambda channels: 2 * channels * channels // 4,
    "eca": lambda channels: 3 if channels < 128 else 5,
}


@each_algorithm
@each_network
def test_the_networks_sites_are_attended_when_the_trainer_exists(key, network):
    model = trainer([ALGORITHMS[key]()], network=network).state.model
    expected = {f"module.{site}" if site else "module" for site in NETWORKS[network].sites}
    assert set(attended_modules(model)) == expected


@each_algorithm
@each_classifier
def test_every_attention_parameter_trains(key, network):
    run = trainer([ALGORITHMS[key]()], network=network)
    start = attention_weights(run.state.model)
    run.fit()
    assert len(start) == len(CHANNELS[network]) * {"squeeze_excite": 2, "eca": 1}[key]
    assert moved(start, attention_weights(run.state.model)) == set(start)


@each_algorithm
@each_classifier
def test_a_trainer_trains_what_a_plain_loop_trains(key, network):
    batches = {"batch_size": 4, "shuffle": False}
    loading = torch.utils.data.DataLoader(data(network), **batches)
    run = trainer([ALGORITHMS[key](fuse=False)], network=network, train_dataloader=loading)
    run.fit()

    model = attended_beforehand(key, classifier(network))
    optimizer = sgd(model)
    for _, (images, labels) in zip(range(3), loading, strict=False):
        optimizer.zero_grad()
        F.cross_entropy(model.module(images), labels).backward()
        optimizer.step()
    assert_same(weights(run.state.model.module), weights(model.module), rtol=1e-5, atol=1e-6)


@each_algorithm
@each_classifier
def test_layers_and_parameters_are_logged_as_hyperparameters(key, network):
    run = trainer([ALGORITHMS[key]()], network=network)
    hyperparameters = logged(run).hyperparameters
    assert hyperparameters[f"{key}/num_layers"] == len(CHANNELS[network])
    expected = sum(PARAMETERS[key](channels) for channels in CHANNELS[network])
    assert hyperparameters[f"{key}/num_parameters"] == expected
    plain = sum(p.numel() for p in classifier(network).parameters())
    assert sum(p.numel() for p in run.state.model.parameters()) == plain + expected


@each_algorithm
def test_attending_nothing_warns_that_the_algorithm_has_no_effect(key):
    with pytest.warns(NoEffectWarning, match="fewer channels than min_channels=17"):
        run = trainer([ALGORITHMS[key](min_channels=17)])
    assert logged(run).hyperparameters[f"{key}/num_layers"] == 0
    assert_same(weights(run.state.model), weights(classifier()))
    run.fit()
    plain = trainer()
    plain.fit()
    assert_same(weights(run.state.model), weights(plain.state.model))


@each_algorithm
def test_attending_something_does_not_warn(key):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer([ALGORITHMS[key]()])


@each_algorithm
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"include": "layer9.*"}, PatternError, r"include pattern 'layer9\.\*' matches none"),
        ({"exclude": ["stem", "trunk"]}, PatternError, "exclude pattern 'trunk' matches none"),
        ({"param_group": 1}, OptimizerError, "param_group must be 0 to 0; got 1"),
        ({"filter_fn": "some.function"}, ComposerAttnError, "pass the algorithm, with that"),
    ],
)
def test_what_does_not_fit_the_model_stops_at_init_and_changes_nothing(
    key, arguments, error, message
):
    model = classifier()
    optimizer = sgd(model)
    state, groups = weights(model), optimizer.state_dict()
    with pytest.raises(error, match=message):
        trainer([ALGORITHMS[key](**arguments)], model=model, optimizer=optimizer)
    assert_same(weights(model), state)
    assert attended_modules(model) == {}
    assert optimizer.state_dict() == groups


@each_algorithm
def test_a_trainer_that_only_evaluates_attends_too(key):
    run = trainer([ALGORITHMS[key]()], max_duration=None, train_dataloader=None)
    run.eval(eval_dataloader=torch.utils.data.DataLoader(data(), batch_size=8))
    reference = attended_beforehand(key, classifier()).eval()
    images, labels = data().tensors
    expected = F.cross_entropy(reference.module(images), labels)
    found = run.state.eval_metrics["eval"]["CrossEntropy"].compute()
    torch.testing.assert_close(found, expected)
