"""Build a run's network again, surgery included, with the weights of a checkpoint."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from composer.core import Engine, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel
from composer.utils import get_device
from torch import Tensor

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.errors import CheckpointError, ComposerAttnError, ConfigError, first_line
from composer_attn.functional.files import open_safely
from composer_attn.runs.config.config_errors import Mistake, at, foreign
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.inference.run_folder import RunFolder
from composer_attn.runs.models import build_model
from composer_attn.runs.training.build import build_algorithms
from composer_attn.runs.training.checkpoint_safety import ALLOWED, check_checkpoint

_CPU = "cpu"


def rebuild(run: RunFolder, num_classes: int) -> ComposerModel:
    """Return a run's model on the CPU, in evaluation mode, with the weights of its checkpoint.

    What the run averaged (EMA) is what its evaluations saw, and is what is returned.

    Args:
        run: where it is.
        num_classes: width of the last layer, where the config leaves that to the data.

    Raises:
        CheckpointError: the checkpoint is not safe, not whole, or of another network.
        ConfigError: the network cannot be built, or be operated on as it was.
    """
    check_checkpoint(run.checkpoint)
    content = open_safely(run.checkpoint, ALLOWED, legacy=False)["state"]
    with at("model"):
        model = build_model(_without_weights(run.config.model) | {"num_classes": num_classes})
    state = State(
        model=model,
        rank_zero_seed=run.config.seed,
        run_name=run.config.run_name,
        device=get_device(_CPU),
        algorithms=_algorithms(run.config),
    )
    logger = Logger(state)
    try:
        Engine(state, logger).run_event(Event.INIT)
    except ComposerAttnError:
        raise
    except Exception as error:  # the algorithms are others' code
        raise ConfigError(Mistake("algorithms", foreign(error))) from error
    try:
        # Adds the attention that the run did not name, but went on with from a checkpoint.
        state.load_model_state(content, logger, strict=True)
    except ComposerAttnError:
        raise
    except Exception as error:  # Composer's, and torch's, of all kinds
        raise CheckpointError(
            f"{run.checkpoint} holds weights of another network than {run.folder} describes: "
            f"{_mismatch(error)}"
        ) from error
    rebuilt = cast(ComposerModel, state.model)  # as it was given
    _take_average(rebuilt, content)
    return rebuilt.eval()


def _without_weights(section: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a network starts from: the checkpoint replaces it, and it may be gone."""
    kept = {name: value for name, value in section.items() if name != "weights"}
    return kept | ({"pretrained": False} if "pretrained" in kept else {})


def _algorithms(config: RunConfig) -> list[Any]:
    algorithms = build_algorithms(config, None)
    for algorithm in algorithms:
        if isinstance(algorithm, AttentionAlgorithm):
            algorithm.param_group = None  # of an optimizer, which nothing has here
    return algorithms


def _take_average(model: ComposerModel, content: Mapping[str, Any]) -> None:
    """Put the moving average of the weights in, where a checkpoint holds it beside them."""
    for name, kept in content.get("algorithms", []):
        if name != "EMA" or kept.get("ema_weights_active") or not kept.get("ema_model"):
            continue
        averages: dict[str, Tensor] = {}
        for part in ("named_parameters_dict", "named_buffers_dict"):
            averages |= kept["ema_model"].get(part, {})
        with torch.no_grad():
            for own, tensor in (*model.named_parameters(), *model.named_buffers()):
                if own in averages:
                    tensor.copy_(averages[own])


def _mismatch(error: Exception) -> str:
    """Return the first of torch's complaints, which stand below a line that says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else first_line(error)
