"""Checkpoints that a run left when it was ended while it wrote one."""

import os
import re
from pathlib import Path

_NAME = re.compile(r"ep\d+-ba(\d+)-rank\d+\.pt")
_LATEST = "latest-rank0.pt"


def drop_unfinished(folder: Path) -> list[Path]:
    """Delete the checkpoints that are newer than the one a run resumes from.

    Composer links ``latest-rank0.pt`` to a checkpoint when it is written. What is newer than that
    may have been cut off, and Composer refuses to go on beside it.

    Returns:
        What was deleted.
    """
    latest = folder / _LATEST
    match = _NAME.fullmatch(os.readlink(latest)) if latest.is_symlink() else None
    resumed = int(match[1]) if match else -1
    if latest.exists() and not match:  # no link of Composer's: nothing is known
        return []
    unfinished = [
        path
        for path in folder.glob("ep*.pt")
        if (found := _NAME.fullmatch(path.name)) and int(found[1]) > resumed
    ]
    for path in unfinished:
        path.unlink()
    return unfinished
