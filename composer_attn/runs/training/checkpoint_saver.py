"""Save checkpoints atomically: a failure during a save leaves the previous checkpoint intact.

Composer writes each file in place, and removes the link to the latest before creating a new one.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from composer.callbacks import CheckpointSaver
from composer.core import State, TimeUnit
from composer.loggers import Logger
from composer.utils import checkpoint, dist

from composer_attn.errors import RunStoppedError, SaveError
from composer_attn.runs.training.signals import StopRequests

FILENAME = "ep{epoch}-ba{batch}-rank{rank}.pt"
LATEST = "latest-rank{rank}.pt"
_WRITTEN = re.compile(r"ep\d+-ba(\d+)-rank0\.pt")
# A prefix, as Composer would take a suffix after ".pt" for a compression format.
_PARTIAL = ".partial-"


def checkpoints_in(folder: str | os.PathLike) -> list[Path]:
    """Return the checkpoints of a run in the order in which they were written."""
    numbered = [(_WRITTEN.fullmatch(path.name), path) for path in Path(folder).iterdir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def clear_partial(folder: str | os.PathLike) -> None:
    """Remove partial files left behind by a killed process."""
    for path in Path(folder).glob(f"{_PARTIAL}*"):
        path.unlink(missing_ok=True)


def point_latest(path: Path) -> None:
    """Atomically point the link to the latest checkpoint at ``path``."""
    link = path.with_name(LATEST.format(rank=0))
    new = link.with_name(f"{_PARTIAL}{link.name}")
    new.unlink(missing_ok=True)
    new.symlink_to(path.name)
    os.replace(new, link)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the renames in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def saving(what: Path | str) -> Iterator[None]:
    """Convert errors of the file system, including those raised by torch, to SaveError.

    Raises:
        SaveError: the disk is full, or the file cannot be written.
    """
    try:
        yield
    except SaveError:
        raise
    except (OSError, RuntimeError) as error:
        # After a failed write torch raises a second error, on closing the archive.
        cause = error.__context__ if "inline_container" in str(error) else error
        if not isinstance(cause, OSError):
            raise
        raise SaveError(f"{what} cannot be written: {cause.strerror or cause}") from error


class SafeCheckpointSaver(CheckpointSaver):
    """Composer's saver for a local folder, with one file per checkpoint; stops the run on request.

    A checkpoint is written under a temporary name, synced to disk, and then renamed. Checkpoints of
    an earlier process count among those to keep.

    Args:
        folder: the save folder.
        interval: how often to save, as a Composer time string.
        keep: number of checkpoints to keep; -1 keeps all.
        stop: the stop requests to obey.

    Raises:
        SaveError: the folder cannot be written; earlier checkpoints are unchanged.
        RunStoppedError: the run was asked to stop, and has been saved.
    """

    def __init__(self, folder: str, interval: str, keep: int, stop: StopRequests):
        super().__init__(
            folder=folder,
            filename=FILENAME,
            remote_file_name=os.path.join(folder, FILENAME).lstrip("/"),
            latest_filename=LATEST,
            latest_remote_file_name=os.path.join(folder, LATEST).lstrip("/"),
            save_interval=interval,
            num_checkpoints_to_keep=keep,
        )
        self.stop = stop

    def fit_start(self, state: State, logger: Logger) -> None:
        """Count existing checkpoints of the run among those to keep."""
        super().fit_start(state, logger)
        if dist.get_global_rank() == 0:
            self.saved_checkpoints = [str(path) for path in checkpoints_in(self.folder)]

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save at the interval, and when the run is asked to stop; then raise to stop it."""
        super().batch_checkpoint(state, logger)
        signal = self.stop.agreed(state.device)
        if signal is None:
            return
        if self.last_checkpoint_batch != state.timestamp.batch:
            self._save_checkpoint(state, logger)
        batch = state.timestamp.get(TimeUnit.BATCH).value
        raise RunStoppedError(
            f"stopped by {signal.name} after batch {batch}, saved in {self.folder}",
            signal,
            self.folder,
        )

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        self.last_checkpoint_batch = state.timestamp.batch
        path = Path(self.filename.format(state))
        # Registered before saving, so that a checkpoint lists itself, as Composer's do.
        self.all_saved_checkpoints_to_timestamp[str(path)] = state.timestamp
        path = path.with_name(path.name.replace(f"rank{dist.get_global_rank()}", "rank0"))
        partial = path.with_name(f"{_PARTIAL}{path.name}")
        with saving(path):
            try:
                written = checkpoint.save_checkpoint(state, str(partial))
                if written:
                    _settle(partial, path)
            except BaseException:
                if dist.get_global_rank() == 0:
                    partial.unlink(missing_ok=True)
                raise
            if written:
                self._announce(state, logger, path)
                self._rotate(path)

    def _announce(self, state: State, logger: Logger, path: Path) -> None:
        """Pass the file to the loggers, some of which upload it."""
        assert self.remote_file_name is not None
        remote = self.remote_file_name.format(state).lstrip("/")
        logger.upload_file(remote_file_name=remote, file_path=path, overwrite=self.overwrite)

    def _rotate(self, path: Path) -> None:
        self.saved_checkpoints = [p for p in self.saved_checkpoints if p != str(path)] + [str(path)]
        while 0 <= self.num_checkpoints_to_keep < len(self.saved_checkpoints):
            Path(self.saved_checkpoints.pop(0)).unlink(missing_ok=True)


def _settle(partial: Path, path: Path) -> None:
    """Move a complete file to its final name, and sync the rename to disk."""
    sync(partial)
    os.replace(partial, path)
    point_latest(path)
    sync(path.parent)
