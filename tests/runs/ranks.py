"""A program for Composer's launcher in which one rank misbehaves.

composer -n 2 -m tests.runs.ranks CASE
"""

import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path

from composer_attn import ECA, EfficientChannelAttention
from composer_attn.cli import app
from composer_attn.runs.components import attention_algorithms, registry
from composer_attn.runs.training import rank_consistency
from tests.runs.killed import Witness

RANK = int(os.environ.get("RANK", "0"))  # pytest imports this file too, to look for examples
CONFIG = """
run_name: small
model: {name: shufflenet_v2_x0_5, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 64, num_classes: 10, size: 16}
optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
batch_size: 4
max_duration: 12ba
save_interval: 4ba
device: cpu
dist_timeout: 20
algorithms: {eca: {min_channels: 256}}
callbacks: {witness: {}}
"""


class Stopped(Witness):
    """A rank that hangs."""

    def before_forward(self, state, logger):
        if RANK == 1 and state.timestamp.batch == 5:
            os.kill(os.getpid(), signal.SIGSTOP)


def killed_at(moment: str, batch: int, rank: int = 1):
    def go_astray():
        Witness.bytes_written = 100_000
        Witness.kill = (moment, batch) if rank == RANK else None

    return go_astray


def another_version():
    if RANK == 1:
        rank_consistency.__version__ = "0.0.9"


def another_surgery():
    if RANK == 1:  # as where a rank's code is another
        attention_algorithms._CLASSES[EfficientChannelAttention] = partial(ECA, exclude="conv5.*")


def full_disk():
    if RANK == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


CASES = {
    "killed at surgery": killed_at("init", 0),
    "killed in training": killed_at("after_forward", 5),
    "killed in saving": killed_at("writing", 5, rank=0),
    "another config": lambda: sys.argv.append("optimizer.lr=0.5") if RANK == 1 else None,
    "another version": another_version,
    "another surgery": another_surgery,
    "full disk": full_disk,
    "no answer": lambda: registry.CALLBACKS.table.update(witness=Stopped),
    "none": lambda: None,
}

if __name__ == "__main__":
    case = sys.argv.pop(1)
    sys.argv[1:] = ["train", "run.yaml"]
    Path(f"process-{RANK}").write_text(str(os.getpid()))
    CASES[case]()
    app(prog_name="composer-attn")
