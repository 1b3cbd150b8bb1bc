"""Run the commands a user runs, in processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

_BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run one of this environment's commands, one thread a process, and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    # So that `composer-attn` and `composer` are those of this environment, also from a shell.
    environment["PATH"] = f"{_BIN}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


def launch(ranks: int, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a module or script on several ranks through Composer's launcher."""
    port = str(free_port())
    return run("composer", "-n", str(ranks), "--master_port", port, *command, cwd=cwd)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
