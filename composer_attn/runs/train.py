"""Train what a config describes."""

import re
from pathlib import Path

from composer.utils import dist, get_device
from omegaconf import OmegaConf

from composer_attn.errors import ConfigError
from composer_attn.runs.build import build_parts, build_trainer
from composer_attn.runs.config import RunConfig
from composer_attn.runs.cost import count_parameters
from composer_attn.runs.mistakes import Mistake
from composer_attn.runs.summary import Summary, summarize


def train(config: RunConfig) -> Summary:
    """Build, train, evaluate and summarize a run; on every rank alike.

    Raises:
        ConfigError: something in the config does not work out; nothing was trained.
    """
    dist.initialize_dist(get_device(config.device), timeout=config.dist_timeout)
    parts = build_parts(config)
    parameters = count_parameters(parts.model)
    folder = _agree_on_folder(config)
    try:
        trainer = build_trainer(config, parts, folder)
    except Exception:
        _remove_if_empty(folder)
        raise
    try:
        trainer.fit()
        if trainer.state.evaluators and not _evaluated_at_end(trainer):
            trainer.eval()
        summary = summarize(config, parts, trainer, parameters, folder)
    finally:
        trainer.close()
    if dist.get_global_rank() == 0:
        OmegaConf.save(OmegaConf.structured(config), Path(folder) / "config.yaml")
        summary.write()
    return summary


def _evaluated_at_end(trainer) -> bool:
    """Say whether the metrics are those of the last step."""
    return trainer.state.eval_timestamp.batch.value > 0 and all(
        metric.update_called for ms in trainer.state.eval_metrics.values() for metric in ms.values()
    )


def _agree_on_folder(config: RunConfig) -> str:
    """Make the save folder on rank 0, where it can be written, and tell the other ranks."""
    answer: list[str | ConfigError] = [""]
    if dist.get_global_rank() == 0:
        try:
            folder = Path(config.save_folder)
            folder = folder if config.autoresume else unused(folder)
            folder.mkdir(parents=True, exist_ok=True)
            answer = [str(folder)]
        except OSError as error:
            answer = [ConfigError(Mistake("save_folder", f"cannot be written: {error}"))]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], ConfigError):
        raise answer[0]
    return answer[0]


def _remove_if_empty(folder: str) -> None:
    """Take back the folder of a run that never started; a resumed one's is not empty."""
    if dist.get_global_rank() == 0 and not any(Path(folder).iterdir()):
        Path(folder).rmdir()


def unused(folder: Path) -> Path:
    """Return a folder's path, or with -2, -3, ... behind it, that holds nothing yet."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    taken = [
        int(match[1])
        for path in folder.parent.glob(f"{folder.name}-*")
        if (match := re.fullmatch(r"(\d+)", path.name.removeprefix(f"{folder.name}-")))
    ]
    return folder.with_name(f"{folder.name}-{max(taken, default=1) + 1}")
