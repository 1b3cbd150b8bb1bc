"""A small network, trained under a monitor."""

import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_attn import SqueezeExcite

SE = {"latent_channels": 4, "min_channels": 16}
CLASSES = 5


def network() -> ComposerClassifier:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)]
    return ComposerClassifier(nn.Sequential(*layers, *head), num_classes=CLASSES)


def dataset(samples: int = 12) -> TensorDataset:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 3, 8, 8, generator=draw)
    return TensorDataset(images, torch.randint(CLASSES - 1, (samples,), generator=draw))


def fit(monitor=None, *, algorithms=None, callbacks=(), model=None, lr=0.1, **options):
    """Train for two epochs of three batches; return the Trainer and what was logged."""
    logged = InMemoryLogger()
    model = model or network()
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(dataset(), batch_size=4),
        optimizers=torch.optim.SGD(model.parameters(), lr=lr),
        algorithms=[SqueezeExcite(**SE)] if algorithms is None else algorithms,
        callbacks=[*([monitor] if monitor else []), *callbacks],
        loggers=[logged],
        progress_bar=False,
        device="cpu",
        seed=3,
        **{"max_duration": "2ep", **options},
    )
    trainer.fit()
    trainer.close()
    return trainer, logged


def steps(logged, key: str) -> list[int]:
    return [timestamp.batch.value for timestamp, _ in logged.data.get(key, [])]
