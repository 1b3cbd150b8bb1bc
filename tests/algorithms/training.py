"""Small Trainers, and helpers for the tests of the algorithms."""

from functools import partial

import pytest
import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils import dist, reproducibility
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_attn import ECA, SqueezeExcite, apply_eca, apply_squeeze_excite, attended_modules
from tests.networks import MIN_CHANNELS, NETWORKS

SEED = 3
CLASSES = {"residual": 5, "resnet": 10}

ARGUMENTS = {
    "squeeze_excite": {"latent_channels": 1 / 4, "min_channels": MIN_CHANNELS},
    "eca": {"min_channels": MIN_CHANNELS},
}
ALGORITHMS = {
    "squeeze_excite": partial(SqueezeExcite, **ARGUMENTS["squeeze_excite"]),
    "eca": partial(ECA, **ARGUMENTS["eca"]),
}
FUNCTIONS = {
    "squeeze_excite": partial(apply_squeeze_excite, **ARGUMENTS["squeeze_excite"]),
    "eca": partial(apply_eca, **ARGUMENTS["eca"]),
}
each_algorithm = pytest.mark.parametrize("key", ALGORITHMS)


def classifier(network: str = "residual") -> ComposerClassifier:
    torch.manual_seed(0)
    return ComposerClassifier(NETWORKS[network].build(), num_classes=CLASSES.get(network, 2))


def data(network: str = "residual", samples: int = 16) -> TensorDataset:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(samples, *NETWORKS[network].shape[1:], generator=draw)
    return TensorDataset(images, torch.randint(CLASSES[network], (samples,), generator=draw))


def loader(network: str = "residual") -> DataLoader:
    dataset = data(network)
    # This sampler uses no global random state, so that runs resume bit for bit.
    sampler = dist.get_sampler(dataset, shuffle=True)
    return DataLoader(dataset, batch_size=4, sampler=sampler)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def trainer(algorithms=(), *, network="residual", model=None, optimizer=None, **options) -> Trainer:
    """Build a Trainer; on a network without classes, one that can only run ``Event.INIT``."""
    model = classifier(network) if model is None else model
    if network in CLASSES:
        options.setdefault("train_dataloader", loader(network))
    defaults = {"max_duration": "3ba", "seed": SEED, "device": "cpu", "progress_bar": False}
    return Trainer(
        model=model,
        optimizers=sgd(model) if optimizer is None else optimizer,
        algorithms=algorithms,
        loggers=[InMemoryLogger()],
        **{**defaults, **options},
    )


def logged(trainer: Trainer) -> InMemoryLogger:
    return next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))


def losses(trainer: Trainer) -> list[float]:
    return [float(loss) for _, loss in logged(trainer).data["loss/train/total"]]


def attended_beforehand(key: str, model: ComposerClassifier, **arguments) -> ComposerClassifier:
    """Attend a model by our function, with the weights that the algorithm draws in a Trainer."""
    with reproducibility.seed_context(SEED):
        FUNCTIONS[key](model, **arguments)
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy the state of a model as it is now."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def attention_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{site}.attention.{name}": parameter.detach().clone()
        for site, attention in attended_modules(model).items()
        for name, parameter in attention.named_parameters()
    }


def moved(before: dict, after: dict) -> set[str]:
    """Return the names of the weights that changed."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_same(actual: dict, expected: dict, **tolerance) -> None:
    """Require equal weights: bit for bit, unless a tolerance is given."""
    torch.testing.assert_close(actual, expected, **(tolerance or {"rtol": 0, "atol": 0}))
