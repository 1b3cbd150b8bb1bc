"""Rebuild a run's network, including surgery, with the weights of a checkpoint."""

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
from composer_attn.runs.tasks.table import find_task
from composer_attn.runs.tasks.task import WEIGHTS, Task
from composer_attn.runs.training.build import build_algorithms
from composer_attn.runs.training.checkpoint_safety import ALLOWED, check_checkpoint

_CPU = "cpu"


def rebuild(run: RunFolder, num_classes: int) -> ComposerModel:
    """Return a run's model on the CPU, in evaluation mode, with the weights of its checkpoint.

    If the run averages its weights (EMA), its checkpoints contain the averaged ones.

    Args:
        run: the run on disk.
        num_classes: width of the last layer, if the config leaves it to the data.

    Raises:
        CheckpointError: the checkpoint is unsafe, incomplete, or of another network.
        ConfigError: the network cannot be built, or the surgery cannot be repeated.
    """
    check_checkpoint(run.checkpoint)
    content = open_safely(run.checkpoint, ALLOWED, legacy=False)["state"]
    task = find_task(run.config.task)
    section = _without_weights(task, run.config.model) | {"num_classes": num_classes}
    with at("model"):
        model = task.build_model(section)
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
        # Also adds attention that came from a checkpoint rather than from the run's config.
        state.load_model_state(content, logger, strict=True)
    except ComposerAttnError:
        raise
    except Exception as error:  # Composer and torch raise many types
        raise CheckpointError(
            f"{run.checkpoint} holds weights of another network than {run.folder} describes: "
            f"{_mismatch(error)}"
        ) from error
    return cast(ComposerModel, state.model).eval()  # the model passed in


def _without_weights(task: Task, section: dict[str, Any]) -> dict[str, Any]:
    """Remove initial weights from the section: the checkpoint replaces them; they may be gone."""
    kept = {name: value for name, value in section.items() if name not in WEIGHTS}
    if "pretrained" in section:
        kept["pretrained"] = False
    return task.arguments_by_weights(section) | kept


def _operate(state: State, logger: Logger) -> None:
    """Perform the surgeries of a run's algorithms."""
    ours = [a for a in state.algorithms if isinstance(a, AttentionAlgorithm)]
    groups = [algorithm.param_group for algorithm in ours]
    try:
        for algorithm in ours:
            algorithm.param_group = None  # there is no optimizer here
        Engine(state, logger).run_event(Event.INIT)
    except ComposerAttnError:
        raise
    except Exception as error:  # the algorithms are third-party code
        raise ConfigError(Mistake("algorithms", foreign(error))) from error
    finally:
        for algorithm, group in zip(ours, groups, strict=True):
            algorithm.param_group = group  # compared by Composer with the checkpoint's value


def _mismatch(error: Exception) -> str:
    """Return the first specific line of torch's error message, which follows a generic one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else first_line(error)
