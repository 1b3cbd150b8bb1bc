"""Train the run that a config describes."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from composer import Trainer
from composer.utils import dist

from composer_attn.errors import CheckpointError, ComposerAttnError, ConfigError
from composer_attn.runs.config.config_errors import Mistake
from composer_attn.runs.config.parallelism import join_ranks
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.training.build import build_parts, build_trainer
from composer_attn.runs.training.checkpoint_saver import saving
from composer_attn.runs.training.examples import ExamplesWriter
from composer_attn.runs.training.history import History
from composer_attn.runs.training.network_cost import count_parameters
from composer_attn.runs.training.predictions import PredictionsWriter
from composer_attn.runs.training.rank_consistency import check_ranks_agree
from composer_attn.runs.training.resume import find_checkpoint
from composer_attn.runs.training.signals import StopRequests
from composer_attn.runs.training.step_history import StepHistory
from composer_attn.runs.training.summary import Summary, summarize


def train(config: RunConfig) -> Summary:
    """Build, train, evaluate and summarize a run; call it on every rank.

    Resuming a run that was already finished evaluates and summarizes it again.

    Raises:
        ConfigError: something in the config is invalid; nothing was trained.
        CheckpointError: the checkpoint to resume from is unsafe; nothing in it was executed.
        RanksError: the ranks have different configs or versions.
        SaveError: the save folder cannot be written.
        RunStoppedError: SIGINT or SIGTERM asked the run to stop; it has been saved.
    """
    join_ranks(config)
    check_ranks_agree(config)
    parts = build_parts(config)
    parameters = count_parameters(parts.model)
    stop = StopRequests()
    with _save_folder(config) as folder:
        history = History(folder, config, parts.train_source)
        parts.callbacks.extend([history, StepHistory(history), PredictionsWriter(folder)])
        if parts.task.examples_of is not None:
            parts.callbacks.append(ExamplesWriter(folder, parts.task.examples_of))
        trainer = build_trainer(config, parts, folder, stop)
        try:
            if trainer.state.timestamp < trainer.state.max_duration:
                with stop.listening():
                    trainer.fit()
            if trainer.state.evaluators and not _evaluated_at_end(trainer):
                trainer.eval()
            summary = summarize(config, parts, trainer, parameters, history)
        finally:
            trainer.close()
        history.write_config()
        if dist.get_global_rank() == 0:
            with saving(folder):
                summary.write()
    return summary


def _evaluated_at_end(trainer: Trainer) -> bool:
    """Return whether the metrics are those of the final step."""
    return trainer.state.eval_timestamp.batch.value > 0 and all(
        metric.update_called for ms in trainer.state.eval_metrics.values() for metric in ms.values()
    )


@contextmanager
def _save_folder(config: RunConfig) -> Iterator[str]:
    """Create the save folder on rank 0 and share its path; a failed run removes it if empty."""
    made: list[Path] = []
    answer: list[str | ComposerAttnError] = [""]
    if dist.get_global_rank() == 0:
        try:
            folder = _make(Path(config.save_folder), config.autoresume, made)
            answer = [folder]
            if config.autoresume:
                find_checkpoint(folder)
        except CheckpointError as error:
            answer = [error]
        except OSError as error:
            answer = [ConfigError(Mistake("save_folder", f"cannot be written: {error}"))]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], ComposerAttnError):
        raise answer[0]
    try:
        yield answer[0]
    except BaseException:
        with suppress(OSError):  # raised by the first non-empty folder
            for each in made:
                each.rmdir()
        raise


def _make(folder: Path, reuse: bool, made: list[Path]) -> str:
    """Create a writable folder, adding it and its newly created parents to ``made``."""
    folder = folder if reuse else unused(folder)
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    made += absent
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"no permission to write into {str(folder)!r}")
    return str(folder)


def unused(folder: Path) -> Path:
    """Return the folder's path, with a suffix -2, -3, ... if it already has content."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    taken = [
        int(match[1])
        for path in folder.parent.glob(f"{folder.name}-*")
        if (match := re.fullmatch(r"(\d+)", path.name.removeprefix(f"{folder.name}-")))
    ]
    return folder.with_name(f"{folder.name}-{max(taken, default=1) + 1}")
