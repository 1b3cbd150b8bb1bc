"""Describe the machine that something was measured on."""

import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def machine(device: str, packages: Sequence[str], **used: Any) -> dict[str, Any]:
    """Describe the machine, what is used of it, and the versions of some packages.

    Args:
        device: ``cpu`` or ``cuda``, with or without an index.
        packages: names of distributions; the version of one that is not installed is empty.
        used: what is used of the machine, such as the number of threads.
    """
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        **used,
        "load_before": round(os.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "python": platform.python_version(),
    } | {name: _version(name) for name in packages}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
