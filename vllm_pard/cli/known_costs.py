"""Step costs that `vllm-pard doctor --measure` has found, kept for later runs of the same pair on the same machine.

So `vllm-pard generate` can judge a draft where its engine can't take plain steps in between.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_pard.checkpoint import is_local
from vllm_pard.files import write_whole
from vllm_pard.verdict import StepCosts

# Engine arguments that leave what a step of a batch costs as it is.
WITHOUT_EFFECT = ("model", "dtype", "seed", "max_model_len", "max_num_seqs", "enable_prefix_caching")
# What an engine says of itself that its steps depend on.
OF_THE_ENGINE = ("vllm", "device", "num_threads", "dtype", "draft", "mode")


def cost_file(target: str, about: Mapping[str, Any], options: Mapping[str, Any]) -> Path:
    """Where the costs of a pair are.

    Args:
        about: what an engine that drafts says when it is ready.
        options: its arguments, those of vLLM's LLM class.
    """
    conditions = {
        "target": _place(target),
        "engine": {name: about.get(name) for name in OF_THE_ENGINE},
        "options": {name: value for name, value in options.items() if name not in WITHOUT_EFFECT},
    }
    name = hashlib.sha256(json.dumps(conditions, sort_keys=True, default=str).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vllm_pard" / "step_costs" / f"{name}.json"


def remember(path: Path, costs: list[StepCosts]) -> None:
    """Replace what was known. Raises OutputError where it can't be kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([asdict(one) for one in costs], indent=1) + "\n")


def recall(path: Path) -> list[StepCosts]:
    """What is known, ascending by batch size; empty where nothing is, or nothing that this version reads."""
    try:
        found = [StepCosts(**_with_numbers(one)) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []
    return sorted(found, key=lambda one: one.batch_size)


def _with_numbers(one: dict[str, Any]) -> dict[str, Any]:
    """JSON's keys are texts."""
    return one | {"step_ms": {int(k): ms for k, ms in one["step_ms"].items()}}


def _place(model: str) -> str:
    return os.path.realpath(model) if is_local(model) else model
