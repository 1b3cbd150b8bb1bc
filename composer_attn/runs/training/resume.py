"""Find the checkpoint that an interrupted run resumes from: the newest complete one."""

import os
import warnings
from pathlib import Path

from composer_attn.errors import CheckpointError, TornCheckpointError
from composer_attn.runs.training.checkpoint_safety import check_checkpoint
from composer_attn.runs.training.checkpoint_saver import (
    LATEST,
    checkpoints_in,
    clear_partial,
    point_latest,
)

TORN = ".torn"


def find_checkpoint(folder: str | os.PathLike) -> Path | None:
    """Return the newest complete checkpoint in a run's folder, and point the latest link at it.

    Torn checkpoints are renamed to ``....pt.torn``, and the one before is used. Composer would
    follow the link, and refuse to train if a newer file exists beside its target.

    Raises:
        CheckpointError: a file is not a checkpoint of a run; or all existing ones are torn.

    Warns:
        UserWarning: the newest checkpoint was torn.
    """
    clear_partial(folder)
    found = checkpoints_in(folder)
    torn: list[str] = []
    while found:
        newest = found.pop()
        try:
            check_checkpoint(newest)
        except TornCheckpointError as error:
            torn.append(str(error))
            os.replace(newest, newest.with_name(newest.name + TORN))
            continue
        _say_torn(torn, f"resuming from {newest.name}")
        point_latest(newest)
        return newest
    latest = Path(folder, LATEST.format(rank=0))
    if torn:
        raise CheckpointError(
            f"no checkpoint in {folder} is intact: {'; '.join(torn)}. They are kept as *{TORN}; to "
            "start over, remove the folder"
        )
    if latest.is_symlink():
        latest.unlink()  # a dangling link
    return None


def _say_torn(torn: list[str], then: str) -> None:
    if torn:
        warnings.warn(f"{'; '.join(torn)}; {then}", stacklevel=3)
