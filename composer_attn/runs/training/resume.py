"""Find what an interrupted run goes on from: the newest checkpoint that is whole."""

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
    """Return the newest whole checkpoint in a run's folder, to which the latest now leads.

    One that is torn is set aside, as ``....pt.torn``, and the one before is taken. Composer would
    take what the link leads to, and refuse to train where a newer file stands beside it.

    Raises:
        CheckpointError: a file is no checkpoint of a run; or there are some, and all are torn.

    Warns:
        UserWarning: the newest was torn.
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
        _say_torn(torn, f"going on from {newest.name}")
        point_latest(newest)
        return newest
    latest = Path(folder, LATEST.format(rank=0))
    if torn:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {'; '.join(torn)}. They are kept as *{TORN}; to "
            "start anew, remove the folder"
        )
    if latest.is_symlink():
        latest.unlink()  # it leads nowhere
    return None


def _say_torn(torn: list[str], then: str) -> None:
    if torn:
        warnings.warn(f"{'; '.join(torn)}; {then}", stacklevel=3)
