"""What a run writes beside its result, so that it can be read, checked and run again."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vllm_pard.conditions import commit, cpu_name, gpu_names, versions
from vllm_pard.files import write_whole

__all__ = ["environment", "without_folders", "write_json"]

_PACKAGES = ("accelerate", "datasets", "safetensors", "tokenizers", "torch", "transformers")


def environment(command: str) -> dict[str, Any]:
    """Command, commit, packages, processor and GPUs; no path of this machine."""
    return {
        "argv": [*command.split(), *map(without_folders, sys.argv[1:])],
        "commit": commit(),
        "packages": versions(_PACKAGES),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "num_threads": torch.get_num_threads(),
        "devices": gpu_names(),
    }


def write_json(path: Path, document: Any) -> None:
    """Entirely or not at all."""
    write_whole(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def without_folders(value: Any) -> Any:
    """The same mapping, list or value, but of absolute paths in it only the names."""
    if isinstance(value, Mapping):
        return {name: without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
