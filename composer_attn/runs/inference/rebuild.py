"""Build a run's network again, surgery included, with the weights of a checkpoint."""

from typing import Any, cast

from composer.core import Engine, Event, State
from composer.loggers import Logger
from composer.models import ComposerModel
from composer.utils import get_device

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.errors import CheckpointError, ComposerAttnError, ConfigError, first_line
from composer_attn.functional.files import open_safely
from composer_attn.runs.components.optim import attention_group
from composer_attn.runs.config.config_errors import Mistake, at, foreign
from composer_attn.runs.inference.run_folder import RunFolder
from composer_attn.runs.models import build_model
from composer_attn.runs.models.weights import arguments_by_weights
from composer_attn.runs.training.build import build_algorithms
from composer_attn.runs.training.checkpoint_safety import ALLOWED, check_checkpoint

_CPU = "cpu"


def rebuild(run: RunFolder, num_classes: int) -> ComposerModel:
    """Return a run's model on the CPU, in evaluation mode, with the weights of its checkpoint.

    Of a run that averages its weights (EMA), checkpoints hold the average in their place.

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
        algorithms=build_algorithms(run.config, attention_group(run.config.optimizer)),
    )
    logger = Logger(state)
    _operate(state, logger)
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
    return cast(ComposerModel, state.model).eval()  # as it was given


def _without_weights(section: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a network starts from: the checkpoint replaces it, and it may be gone."""
    kept = {name: value for name, value in section.items() if name != "weights"}
    if "pretrained" in kept:
        kept["pretrained"] = False
    return arguments_by_weights(section) | kept


def _operate(state: State, logger: Logger) -> None:
    """Perform the surgeries of a run's algorithms."""
    ours = [a for a in state.algorithms if isinstance(a, AttentionAlgorithm)]
    groups = [algorithm.param_group for algorithm in ours]
    try:
        for algorithm in ours:
            algorithm.param_group = None  # of an optimizer, which nothing has here
        Engine(state, logger).run_event(Event.INIT)
    except ComposerAttnError:
        raise
    except Exception as error:  # the algorithms are others' code
        raise ConfigError(Mistake("algorithms", foreign(error))) from error
    finally:
        for algorithm, group in zip(ours, groups, strict=True):
            algorithm.param_group = group  # which Composer compares with the checkpoint's


def _mismatch(error: Exception) -> str:
    """Return the first of torch's complaints, which stand below a line that says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else first_line(error)
