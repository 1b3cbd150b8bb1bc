"""Distribution of a run over processes."""

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist, get_device
from composer.utils.parallelism import FSDP2Config, ParallelismConfig
from packaging.version import Version

from composer_attn.errors import ArgumentError
from composer_attn.runs.config.config_errors import at
from composer_attn.runs.config.schema import RunConfig

PARALLELISMS = ("ddp", "fsdp2")

# Under Composer 0.32.1 on CPU, with or without attention, FSDP2's losses equal those of DDP with
# this version of torch, and differ from them with 2.7.0.
_FSDP2_TORCH = Version("2.13")


def join_ranks(config: RunConfig) -> None:
    """Join the process group of the run; a single process does not wait.

    Raises:
        ConfigError: the configured device is not available.
    """
    with at("device"):
        device = get_device(config.device)
    dist.initialize_dist(device, timeout=config.dist_timeout)


def parallelism_config(parallelism: str) -> ParallelismConfig | None:
    """Return the config for Composer's Trainer; ``None`` means DDP if there are several ranks.

    Raises:
        ArgumentError: training under FSDP2 is not correct with the installed torch.
    """
    if parallelism == "ddp":
        return None
    installed = Version(torch.__version__.partition("+")[0])
    if installed < _FSDP2_TORCH:
        raise ArgumentError(
            f"fsdp2 needs torch >= {_FSDP2_TORCH}: with 2.7.0 its losses differ from those of "
            f"ddp, and {installed} has not been verified; use ddp"
        )
    # In one file, like any other checkpoint: it is checked, kept and resumed as those are, by any
    # number of ranks and under either parallelism. Composer's default is a folder of shards.
    return ParallelismConfig(fsdp2=FSDP2Config(state_dict_type="full"))


class SharedBuffers(Callback):
    """Lets every rank evaluate with rank 0's running statistics, which checkpoints hold.

    DDP broadcasts them at every step; under FSDP2 each rank keeps its own, so that a resumed run
    would evaluate differently from one that was never interrupted.
    """

    def eval_start(self, state: State, logger: Logger) -> None:
        """Send rank 0's buffers to the others."""
        for buffer in state.model.buffers():
            dist.broadcast(buffer, src=0)
