"""The receipt of a run, and the README of its draft, written from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerState

from vllm_pard.files import write_whole
from vllm_pard.training.loop.pace import Spent
from vllm_pard.training.options.config import LOSSES
from vllm_pard.training.options.train_config import TrainConfig
from vllm_pard.training.output.receipt import environment, without_folders, write_json

__all__ = ["draft_card", "write_receipt"]

FOLDERS = re.compile(r"(?<=')/[^']*/(?=[^'/]*')")  # of a quoted path: they are this machine's

_CARD = """\
---
{front}
tags: [vllm, speculative-decoding, {method}]
---

# {title}

A {name} draft{for_target}, trained with vllm-pard{from_start}. It guesses {num_depths} tokens in one forward; the
target keeps those that it would have written itself, so outputs stay the target's.

    vllm serve {target} --speculative-config '{{"method": "pard", "model": "THIS FOLDER"}}'

| | |
|---|---|
| mask token (`pard_token`) | {mask_token_id} |
| acceptance length on held-out answers, K = {num_speculative_tokens} | {acceptance} |
| loss | {loss} |
| steps, time | {num_steps}, {minutes:.0f} minutes |
| data | {data} |

`receipt.json` has the whole config, the loss curve and the packages.
"""


def write_receipt(
    folder: Path,
    config: TrainConfig,
    *,
    mask_token_id: int,
    num_parameters: int,
    num_processes: int,
    data: str,
    state: TrainerState,
    spent: Spent,
) -> None:
    """Write receipt.json and README.md beside the draft."""
    receipt = {
        "config": without_folders(asdict(config)),
        "mask_token_id": mask_token_id,
        "num_parameters": num_parameters,
        "num_processes": num_processes,
        "data": FOLDERS.sub("", data),
        "num_steps": state.global_step,
        "training_seconds": round(spent.seconds, 2),
        "num_rows": spent.num_rows,
        "num_tokens": spent.num_tokens,
        "best_step": state.best_global_step,
        "acceptance_length": state.best_metric,
        "log": state.log_history,
        "environment": environment("vllm-pard train"),
    }
    write_json(folder / "receipt.json", receipt)
    write_whole(folder / "README.md", draft_card(receipt))


def draft_card(receipt: Mapping[str, Any]) -> str:
    """The README of a draft, as the hub shows it."""
    config = receipt["config"]
    target, acceptance = config["target"], receipt["acceptance_length"]
    is_pard2 = config["features"] is not None
    start = config["draft"] or (target if config["prune_layers"] is not None else None)
    scales = [f"{config['loss'][name]:g} {name}" for name in LOSSES if config["loss"][name]]
    weights = config["loss"]["weights"]
    return _CARD.format(
        front=f"base_model: {start}" if start else "library_name: transformers",
        method="pard-2" if is_pard2 else "pard",
        name="PARD-2" if is_pard2 else "PARD",
        title=Path(config["output"]).name,
        for_target=f" for {target}" if target else "",
        from_start=f" from {_start(config)}",
        num_depths=config["cod"]["num_depths"],
        target=target or "TARGET",
        mask_token_id=receipt["mask_token_id"],
        num_speculative_tokens=config["evaluation"]["num_speculative_tokens"] or config["cod"]["num_depths"],
        acceptance="not measured" if acceptance is None else f"{acceptance:.2f}",
        loss=" + ".join(scales) + ("" if weights == "none" else f", weights {weights}"),
        num_steps=receipt["num_steps"],
        minutes=receipt["training_seconds"] / 60,
        data=receipt["data"].replace("|", "/"),
    )


def _start(config: Mapping[str, Any]) -> str:
    if config["draft"] is not None:
        return str(config["draft"])
    if config["prune_layers"] is not None:
        layers = config["prune_layers"]
        return f"{layers} layers of it" if isinstance(layers, int) else f"its layers {', '.join(map(str, layers))}"
    return "random weights"
