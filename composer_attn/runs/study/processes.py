"""The processes of a study: started with its lock, and ended with it."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_POLL = 0.5  # seconds
_PATIENCE = 20  # seconds that a process has to terminate


def run_process(
    command: Sequence[str],
    log: Path,
    lock: int,
    *,
    while_running: Callable[[], None] = lambda: None,
    said: str = "",
) -> int:
    """Run a command, and return its exit code; an exception while waiting ends the process as well.

    Args:
        command: the command.
        log: file that its output is appended to.
        lock: descriptor of the study's lock, which the process inherits: it holds the lock even
            if the study is killed.
        while_running: called twice a second.
        said: its standard input.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=file, pass_fds=[lock]
        )
    try:
        if process.stdin:
            _say(process, said)
        while process.poll() is None:
            while_running()
            time.sleep(_POLL)
    finally:
        _stop(process)
    return process.returncode


def _say(process: subprocess.Popen, text: str) -> None:
    try:
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(text.encode())
    except BrokenPipeError:  # it has ended already, and its log says why
        pass


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
