"""Surgery under live optimizers: what the Trainer trains is what it would train on a network that
was attended before its optimizer and schedulers were built."""

from collections.abc import Callable
from dataclasses import dataclass

import composer.algorithms as known
import pytest
import torch
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledAdamW
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR

from composer_attn.errors import OptimizerError
from tests.algorithms.training import (
    ALGORITHMS,
    assert_same,
    attended_beforehand,
    attention_weights,
    classifier,
    each_algorithm,
    losses,
    moved,
    sgd,
    trainer,
    weights,
)

BATCHES = 5


def decay_and_no_decay(model, kind=torch.optim.AdamW, **options):
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0, "lr": 0.02},
    ]
    return kind(groups, lr=0.01, **options)


@dataclass(frozen=True)
class Setup:
    """An optimizer, and what changes its learning rates or steps."""

    optimizer: Callable
    schedulers: Callable = lambda optimizer: None
    algorithms: Callable[[], list] = list
    exact: bool = True


def cosine(optimizer):
    return CosineAnnealingWithWarmupScheduler("2ba", t_max=f"{BATCHES}ba")


SETUPS = {
    "SGD": Setup(sgd),
    "AdamW, two groups": Setup(decay_and_no_decay),
    "Composer's AdamW, two groups": Setup(lambda m: decay_and_no_decay(m, DecoupledAdamW)),
    "LambdaLR": Setup(sgd, lambda o: LambdaLR(o, lambda batch: 1 / (1 + batch))),
    "LambdaLR, two groups": Setup(
        decay_and_no_decay, lambda o: LambdaLR(o, [lambda batch: 0.5**batch, lambda batch: 1.0])
    ),
    "OneCycleLR": Setup(sgd, lambda o: OneCycleLR(o, max_lr=0.1, total_steps=BATCHES + 1)),
    "OneCycleLR, two groups": Setup(
        decay_and_no_decay, lambda o: OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=BATCHES + 1)
    ),
    "MultiStepLR": Setup(sgd, lambda o: MultiStepLR(o, [1, 3])),
    "Composer's cosine": Setup(decay_and_no_decay, cosine),
    # A norm over all parameters, in another order: not to the bit.
    "SAM": Setup(sgd, algorithms=lambda: [known.SAM(rho=0.05)], exact=False),
    "SAM, two groups, LambdaLR": Setup(
        decay_and_no_decay,
        lambda o: LambdaLR(o, lambda batch: 0.5**batch),
        lambda: [known.SAM(rho=0.05)],
        exact=False,
    ),
    "EMA": Setup(sgd, algorithms=lambda: [known.EMA(half_life="2ba")]),
}
each_setup = pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)


def run(model, setup: Setup, algorithms: list, **options):
    optimizer = setup.optimizer(model)
    found = trainer(
        [*algorithms, *setup.algorithms()],
        model=model,
        optimizer=optimizer,
        schedulers=setup.schedulers(optimizer),
        step_schedulers_every_batch=True,
        max_duration=f"{BATCHES}ba",
        **options,
    )
    found.fit()
    return found


def grouped(run) -> list[dict]:
    """Each group's parameters by name, and its options."""
    names = {id(p): name for name, p in run.state.model.named_parameters()}
    return [
        {**group, "params": sorted(names[id(p)] for p in group["params"])}
        for group in run.state.optimizers[0].param_groups
    ]


@each_algorithm
@each_setup
@pytest.mark.filterwarnings("ignore:SAM has known issues")
def test_training_is_that_of_a_network_attended_beforehand(key, setup):
    surgery = run(classifier(), setup, [ALGORITHMS[key](fuse=False)])
    beforehand = run(attended_beforehand(key, classifier()), setup, [])
    tolerance = {} if setup.exact else {"rtol": 1e-5, "atol": 1e-6}
    assert grouped(surgery) == grouped(beforehand)
    assert_same(dict(enumerate(losses(surgery))), dict(enumerate(losses(beforehand))), **tolerance)
    assert_same(weights(surgery.state.model), weights(beforehand.state.model), **tolerance)


@each_algorithm
def test_new_parameters_join_the_group_of_their_convolutions_weight(key):
    grouping = grouped(run(classifier(), Setup(decay_and_no_decay), [ALGORITHMS[key]()]))
    assert [group["weight_decay"] for group in grouping] == [0.1, 0.0]
    attention = set(attention_weights(trainer([ALGORITHMS[key]()]).state.model))
    assert attention < set(grouping[0]["params"])
    assert not attention & set(grouping[1]["params"])


@each_algorithm
def test_a_learning_rate_of_zero_stops_the_attention_too(key):
    """From the third batch on the rate is 0, and what plain SGD trains stands still."""
    setup = Setup(
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        lambda optimizer: LambdaLR(optimizer, lambda batch: float(batch < 2)),
    )
    ends = []
    for until in (1, 2, BATCHES):
        optimizer = setup.optimizer(model := classifier())
        found = trainer(
            [ALGORITHMS[key]()],
            model=model,
            optimizer=optimizer,
            schedulers=setup.schedulers(optimizer),
            step_schedulers_every_batch=True,
            max_duration=f"{until}ba",
        )
        found.fit()
        ends.append(attention_weights(found.state.model))
    assert moved(ends[0], ends[1]) == set(ends[0])
    assert_same(ends[1], ends[2])


@each_algorithm
def test_ema_averages_the_attention(key):
    setup = SETUPS["EMA"]
    found = run(classifier(), setup, [ALGORITHMS[key]()])
    ema = next(a for a in found.state.algorithms if isinstance(a, known.EMA))
    trained = attention_weights(found.state.model)
    averaged = {name: ema.ema_model.named_parameters_dict[name] for name in trained}
    assert moved(trained, averaged) == set(trained)


@each_algorithm
def test_a_frozen_backbone_trains_its_attention_with_one_argument(key):
    model = classifier()
    head = torch.optim.SGD(model.module.head.parameters(), lr=0.1)
    model.module.stem.requires_grad_(False)
    before = weights(model)
    with pytest.raises(OptimizerError, match="param_group=0"):
        trainer([ALGORITHMS[key]()], model=model, optimizer=head)
    assert_same(weights(model), before)

    found = trainer([ALGORITHMS[key](param_group=0)], model=model, optimizer=head)
    start = weights(model)
    found.fit()
    changed = {n for n in moved(start, weights(model)) if n in dict(model.named_parameters())}
    head_names = {"module.head.weight", "module.head.bias"}
    assert changed == set(attention_weights(model)) | head_names
