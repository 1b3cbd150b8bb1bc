"""A program for Composer's launcher: train and evaluate under a monitor, and write what it saw.

composer -n 2 -m tests.callbacks.two_processes FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from composer_attn import ExcitationMonitor, SqueezeExcite

BATCH, SAMPLES, CLASSES = 8, 24, 5
# By rank batches of 4, 4 and 3 samples, the last of which, of the last rank, is padding; with
# batches of 5 in all, that rank has a batch of nothing but padding.
EVALUATED = 21
EVAL_BATCHES = (8, 4, 2)


def network() -> ComposerClassifier:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES)]
    return ComposerClassifier(nn.Sequential(*layers, *head), num_classes=CLASSES)


def loader(samples: int, batch: int) -> DataLoader:
    draw = torch.Generator().manual_seed(samples)
    images = torch.randn(samples, 3, 8, 8, generator=draw)
    data = TensorDataset(images, torch.randint(CLASSES, (samples,), generator=draw))
    sampler = dist.get_sampler(data, shuffle=False)
    return DataLoader(data, batch_size=batch // dist.get_world_size(), sampler=sampler)


def run(folder: Path, eval_batch: int) -> dict[str, list[float]]:
    """Train three batches, evaluate; return what was logged, and leave what was kept."""
    logged, model = InMemoryLogger(), network()
    trainer = Trainer(
        model=model,
        train_dataloader=loader(SAMPLES, BATCH),
        eval_dataloader=loader(EVALUATED, eval_batch),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        algorithms=[SqueezeExcite(latent_channels=4, min_channels=16)],
        callbacks=[ExcitationMonitor("1ba", folder=str(folder))],
        loggers=[logged],
        max_duration="3ba",
        progress_bar=False,
        device="cpu",
        seed=3,
    )
    trainer.fit()
    trainer.close()
    keys = [key for key in logged.data if key.startswith("excitation/")]
    return {key: [value for _, value in logged.data[key]] for key in keys}


def main(folder: Path) -> None:
    dist.initialize_dist("cpu", timeout=60)
    for eval_batch in EVAL_BATCHES:
        found = run(folder / str(eval_batch), eval_batch)
    (folder / f"rank{dist.get_global_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
