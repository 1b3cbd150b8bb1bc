"""A tiny run, trained once for each worker, and image files that it can be asked about."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.training.train import train

CONFIG = """
run_name: tiny
model: {name: resnet10}
train_dataset: {name: digits, split: train, size: 8}
eval_dataset: {name: digits, split: test, size: 8}
optimizer: {name: sgd, lr: 0.02, momentum: 0.9}
batch_size: 64
max_duration: 21ba
eval_interval: 7ba
save_interval: 7ba
save_num_checkpoints_to_keep: -1
device: cpu
algorithms: {squeeze_excite: {min_channels: 128, latent_channels: 1/16}}
"""


def train_in(folder: Path, *overrides: str, config: str = CONFIG):
    """Train a run into a folder of its own, and return its summary."""
    file = folder.with_suffix(".yaml")
    file.write_text(config)
    return train(load_checked(file, [f"save_folder={folder}", *overrides]))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return the folder of a run that can tell some digits from others, and its summary."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    return folder, train_in(folder)


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory):
    """Write the first digits of scikit-learn as files of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("digits")
    paths = []
    for index, pixels in enumerate(load_digits().images[:12]):
        paths.append(folder / f"{index}.png")
        Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(paths[-1])
    return paths
