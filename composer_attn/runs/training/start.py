"""What a run starts from: scratch, a checkpoint, or the weights of one made without attention.

Composer loads a checkpoint, optimizer included, only into a model with the same modules. The
checkpoint of a run without attention is loaded here, as weights only, after the surgery.
"""

from dataclasses import dataclass
from typing import Any

import composer.algorithms
from composer.core import Callback, State
from composer.loggers import Logger

from composer_attn.algorithms.base import AttentionAlgorithm
from composer_attn.attention import attention_names
from composer_attn.errors import ConfigError
from composer_attn.functional import load_weights
from composer_attn.runs.components.attention_algorithms import class_of
from composer_attn.runs.config.config_errors import Mistake
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.training.checkpoint_safety import check_checkpoint, local_file


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        text: description for users; ``None`` if it starts from scratch.
        load_path: the path that Composer loads, if any.
        weights: the checkpoint without attention whose weights are loaded, if any.
    """

    text: str | None = None
    load_path: str | None = None
    weights: str | None = None


def find_start(config: RunConfig) -> Start:
    """Determine what a run starts from, checking the checkpoint if it is local.

    Raises:
        CheckpointError: it is unsafe or incomplete.
        ConfigError: it was made with another attention, or the parallelism does not permit loading
            its weights.
    """
    path = config.load_path
    if path is None:
        return Start()
    what = "weights of" if config.load_weights_only else "checkpoint"
    whole = Start(f"{what} {path}", load_path=path)
    file = local_file(path)
    if file is None:  # remote: checked by Composer's hook once it is downloaded
        return whole
    asked = {name: class_of(name) for name in config.algorithms if name in attention_names()}
    made_with = [name for name in check_checkpoint(file) if _is_ours(_named(name))]
    if not asked or {cls.__name__ for cls in asked.values()} & set(made_with):
        return whole
    if made_with:
        message = (
            f"{path} was made with {' and '.join(made_with)}, but this run adds "
            f"{' and '.join(asked)}. A checkpoint can only be loaded with the attention it was "
            "made with; one made without attention, with any"
        )
        raise ConfigError(Mistake("load_path", message))
    if config.parallelism != "ddp":
        message = (
            f"{path} was made without attention; under {config.parallelism} load its weights "
            "with model.weights"
        )
        raise ConfigError(Mistake("load_path", message))
    starts = [
        f"{name} from start={(config.algorithms[name] or {}).get('start', 'paper')}"
        for name in asked
    ]
    text = f"weights of {path}, made without attention; {', '.join(starts)}"
    return Start(text, weights=file)


class WeightsWithoutAttention(Callback):
    """Loads the weights of a checkpoint made without attention, after surgery.

    Args:
        path: path of the checkpoint.
    """

    def __init__(self, path: str):
        self.path = path

    def before_load(self, state: State, logger: Logger) -> None:
        """Load after all surgery, before the model is wrapped or compiled."""
        load_weights(state.model, self.path)


class AfterSurgery(Callback):
    """Lets a model load weights that its attention may be part of, after surgery."""

    def before_load(self, state: State, logger: Logger) -> None:
        """Load before the checkpoint of a resumed run, which replaces the weights."""
        model: Any = state.model
        model.after_surgery()


def _named(algorithm: str) -> object:
    return getattr(composer.algorithms, algorithm, None)


def _is_ours(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, AttentionAlgorithm)
