"""Run users' commands: in separate processes or, where start-up is slow, in this one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run one of this environment's commands, one thread per process; return its output."""
    done = subprocess.run(
        command, cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=timeout
    )
    # torchao, which transformers imports where it is installed, logs which torch it was built for.
    lines = done.stderr.splitlines(keepends=True)
    done.stderr = "".join(line for line in lines if "torchao" not in line)
    return done


def start(*command: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a command as :func:`run` does, with all of its processes in a separate group."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(ranks: int, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a module or script on several ranks through Composer's launcher."""
    port = str(free_port())
    return run("composer", "-n", str(ranks), "--master_port", port, *command, cwd=cwd)


def invoke(*arguments: str) -> int:
    """Run composer-attn in this process and return its exit code; ``capfd`` captures its output."""
    from composer_attn.cli import app

    with pytest.raises(SystemExit) as left:
        app(list(arguments), prog_name="composer-attn")
    return left.value.code


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment() -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    # So that a shell, too, finds the `composer-attn` and `composer` of this environment.
    environment["PATH"] = f"{_BIN}{os.pathsep}{environment['PATH']}"
    paths = [str(ROOT / "tests" / "unprobed"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment
