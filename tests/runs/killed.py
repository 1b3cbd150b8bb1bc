"""A program that trains, is killed repeatedly at seeded points, and resumes each time.

python -m tests.runs.killed FOLDER ALGORITHM RANKS SEED KILLS

Each rank is a process of its own, forked from this one, so that a run costs no imports.
"""

import json
import os
import random
import resource
import signal
import sys
import traceback
from pathlib import Path

import torch
from composer import Callback
from composer.utils import collect_env, dist

from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.components.registry import CALLBACKS
from composer_attn.runs.training.train import train
from tests.commands import free_port

BATCHES, SAVED_EVERY = 16, 2
CONFIG = f"""
run_name: killed
seed: 3
model: {{name: shufflenet_v2_x0_5, num_classes: 10}}
train_dataset: {{name: synthetic, num_samples: 32, num_classes: 10, size: 16}}
eval_dataset: {{name: synthetic, num_samples: 8, num_classes: 10, size: 16}}
optimizer: {{name: sgd, lr: 0.01, momentum: 0.9}}
scheduler: {{name: cosine_annealing}}
batch_size: 8
max_duration: {BATCHES}ba
save_interval: {SAVED_EVERY}ba
device: cpu
dist_timeout: 30
autoresume: true
callbacks: {{witness: {{}}}}
"""
ALGORITHMS = {
    "eca": "eca: {min_channels: 48}, label_smoothing: {}",
    "squeeze_excite": "squeeze_excite: {min_channels: 48, latent_channels: 4}",
    "eca, not fused": "eca: {min_channels: 48, fuse: false}, label_smoothing: {}",
    "squeeze_excite, not fused": (
        "squeeze_excite: {min_channels: 48, latent_channels: 4, fuse: false}"
    ),
}
MOMENTS = ("batch_start", "after_forward", "after_backward", "batch_end", "writing")


class Witness(Callback):
    """Records each loss exactly, and kills its own process at a given moment."""

    kill: tuple[str, int] | None = None
    bytes_written: int = 0

    def batch_end(self, state, logger):
        loss = float(state.loss).hex()
        with open(f"losses-rank{dist.get_global_rank()}.txt", "a") as file:
            file.write(f"{state.timestamp.batch.value} {loss}\n")

    def run_event(self, event, state, logger):
        super().run_event(event, state, logger)
        moment, batch = self.kill or ("", 0)
        if self.kill is None or state.timestamp.batch.value < batch:
            return
        if moment == "writing":
            # The system kills the process at this very byte of the next checkpoint.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes_written, self.bytes_written))
        elif event.value == moment:
            os.kill(os.getpid(), signal.SIGKILL)


CALLBACKS.table["witness"] = Witness


def rank_process(rank: int, ranks: int, port: int, folder: Path, overrides: list[str]) -> int:
    """Fork a process that trains as one rank; return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(folder)
        log = os.open(f"log-rank{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        local = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_PORT": port}
        counts = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({name: str(value) for name, value in (local | counts).items()})
        torch.set_num_threads(1)
        train(load_checked("run.yaml", overrides))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(folder: Path, ranks: int, overrides: list[str]) -> list[int]:
    """Train once, on all ranks, until each has ended by itself; return their exit codes."""
    port = free_port()
    processes = [rank_process(rank, ranks, port, folder, overrides) for rank in range(ranks)]
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def main(folder: Path, algorithm: str, ranks: int, seed: int, kills: int) -> None:
    draw = random.Random(seed)
    collect_env.get_cpu_model()  # takes a second and a half, once, instead of once a fork
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        (folder / name / "run.yaml").write_text(CONFIG)
    overrides = [f"algorithms={{{ALGORITHMS[algorithm]}}}"]
    codes = {"whole": run(folder / "whole", ranks, overrides), "killed": []}
    last = folder / "whole" / "runs" / "killed" / "latest-rank0.pt"
    # Each of the moments comes up, and the last checkpoint stays to be written.
    moments = [MOMENTS[-1 - i % len(MOMENTS)] for i in range(kills)]
    batches = sorted(draw.randrange(BATCHES - SAVED_EVERY) for _ in range(kills))
    for moment, batch in zip(moments, batches, strict=True):
        Witness.kill = (moment, batch)
        Witness.bytes_written = draw.randrange(10_000, last.stat().st_size)
        victim = 0 if moment == "writing" else draw.randrange(ranks)
        ended = run_with_victim(folder / "killed", ranks, overrides, victim)
        codes["killed"].append({"moment": moment, "batch": batch, "victim": victim, "codes": ended})
    Witness.kill = None
    codes["resumed"] = run(folder / "killed", ranks, overrides)
    (folder / "codes.json").write_text(json.dumps(codes))


def run_with_victim(folder: Path, ranks: int, overrides: list[str], victim: int) -> list[int]:
    """Train once, with one rank to be killed."""
    port, kill = free_port(), Witness.kill
    processes = []
    for rank in range(ranks):
        Witness.kill = kill if rank == victim else None
        processes.append(rank_process(rank, ranks, port, folder, overrides))
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *(int(text) for text in sys.argv[3:6]))
