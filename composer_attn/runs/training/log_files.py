"""Place the loggers' files in the run's folder, unless the config says otherwise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.core import Callback
from composer.loggers import FileLogger, TensorboardLogger


def keep_in_folder(
    loggers: list[Callback], sections: Mapping[str, Mapping[str, Any] | None], folder: str | Path
) -> None:
    """Direct loggers that write files, and were given no path, to a run's folder.

    TensorBoard's files go to ``<folder>/tensorboard``, and a file logger's text to
    ``<folder>/logs-rank0.txt``. Composer's own defaults are folders in the working directory, where
    a second run of the same name writes into those of the first.

    Args:
        loggers: the loggers as built, not yet in use.
        sections: the config's ``loggers``, in the same order.
        folder: the run's save folder.
    """
    for logger, arguments in zip(loggers, sections.values(), strict=True):
        given = arguments or {}
        if isinstance(logger, TensorboardLogger) and given.get("log_dir") is None:
            logger.log_dir = str(Path(folder) / "tensorboard")
        elif isinstance(logger, FileLogger) and given.get("filename") is None:
            escaped = str(folder).replace("{", "{{").replace("}", "}}")
            logger.filename_format = f"{escaped}/logs-rank{{rank}}.txt"
