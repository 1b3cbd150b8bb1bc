"""A program for Composer's launcher: train on every rank, and write what each rank saw to a folder.

composer -n 2 -m tests.algorithms.two_processes FOLDER
"""

import sys
from pathlib import Path

import torch
from composer import Callback
from composer.models import ComposerClassifier
from composer.utils import FSDP2Config, dist
from composer.utils.parallelism import ParallelismConfig
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from composer_attn import attended_modules
from tests.algorithms.training import ALGORITHMS, attention_weights, trainer, weights

BATCH, BATCHES = 8, 3  # of all ranks together
WRAPPER = "_checkpoint_wrapped_module"


class BeforeTraining(Callback):
    """Records the attention of this rank before DDP broadcasts rank 0's parameters."""

    def after_load(self, state, logger):
        self.weights = {
            name.replace(f"{WRAPPER}.", ""): value.full_tensor()
            if isinstance(value, DTensor)
            else value
            for name, value in attention_weights(state.model).items()
        }


def network() -> ComposerClassifier:
    """A network without batch norm, on which two half batches are one batch."""
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)]
    return ComposerClassifier(nn.Sequential(*layers, *head), num_classes=5)


def batches() -> DataLoader:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH * BATCHES, 3, 8, 8, generator=draw)
    dataset = TensorDataset(images, torch.randint(5, (len(images),), generator=draw))
    size = BATCH // dist.get_world_size()
    return DataLoader(dataset, batch_size=size, sampler=dist.get_sampler(dataset, shuffle=False))


def train(key: str, model: ComposerClassifier, **options):
    """Train a model; return the Trainer, and the attention's weights at the start."""
    start = BeforeTraining()
    run = trainer(
        [ALGORITHMS[key]()],
        model=model,
        train_dataloader=batches(),
        max_duration=f"{BATCHES}ba",
        callbacks=[start],
        **options,
    )
    run.fit()
    run.close()
    return run, start.weights


def replicated(key: str, folder: Path) -> dict:
    """Under DDP, from a model that each rank has built with other weights."""
    torch.manual_seed(dist.get_global_rank())
    run, start = train(key, network(), save_folder=str(folder / key))
    return {"start": start, "end": weights(run._original_model)}


def sharded(key: str) -> dict:
    """Under FSDP2, which sends no parameters around, with wrappers around the convolutions."""
    model = network()
    model.module.activation_checkpointing_fn = lambda module: isinstance(module, nn.Conv2d)
    config = ParallelismConfig(fsdp=FSDP2Config(activation_checkpointing=True))
    run, start = train(key, model, parallelism_config=config)
    return {"start": start, "sites": list(attended_modules(run.state.model))}


def fused(key: str) -> dict:
    """Under DDP, a network with batch norms, fused and not; the weights at both ends."""
    ends = {}
    for fuse in (True, False):
        torch.manual_seed(dist.get_global_rank())
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)]
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), *head)
        algorithm = ALGORITHMS[key](fuse=fuse, backend="reference")
        run = trainer(
            [algorithm],
            model=ComposerClassifier(model, num_classes=5),
            train_dataloader=batches(),
            max_duration=f"{BATCHES}ba",
        )
        run.fit()
        run.close()
        ends[fuse] = weights(run._original_model)
        ends[fuse, "sites"] = len(algorithm.fusion.fused) if algorithm.fusion else 0
    return ends


def loaded_into_shards(key: str, folder: Path) -> str:
    """Load a checkpoint into a sharded model that is not attended; return why it is refused."""
    try:
        trainer(
            [],
            model=network(),
            train_dataloader=batches(),
            parallelism_config=ParallelismConfig(fsdp=FSDP2Config(state_dict_type="full")),
            load_path=str(folder / key / f"ep0-ba{BATCHES}-rank0.pt"),
        )
    except ValueError as error:
        return repr(error.__cause__)
    return "not refused"


def main(folder: Path) -> None:
    dist.initialize_dist("cpu", timeout=60)
    found = {}
    for key in ALGORITHMS:
        found[key, "replicated"] = replicated(key, folder)
        found[key, "fused"] = fused(key)
        found[key, "refused"] = loaded_into_shards(key, folder)
        found[key, "sharded"] = sharded(key)
    torch.save(found, folder / f"rank{dist.get_global_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
