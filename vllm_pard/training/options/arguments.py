"""Transformers' TrainingArguments for a run: our defaults, what the config says, and what follows from both."""

from __future__ import annotations

import difflib
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from vllm_pard.errors import first_sentence
from vllm_pard.training.options.config import TrainConfigError
from vllm_pard.training.options.train_config import TrainConfig

__all__ = ["num_draws", "training_arguments"]

# For a draft that starts from a trained model; a checkpoint is chosen by acceptance, not by loss.
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "num_train_epochs": 1.0,
    "learning_rate": 3e-5,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 0.03,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "save_steps": 500,
    "save_total_limit": 2,
}


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """Raises TrainConfigError on an unknown argument, or on what Transformers says of one."""
    known = {each.name for each in fields(TrainingArguments)}
    for name in config.trainer:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean trainer.{nearest[0]}?" if nearest else ": see Transformers' TrainingArguments"
            raise TrainConfigError(f"unknown option trainer.{name} in the training config{hint}")
    given = DEFAULTS | {"bf16": _has_fast_bf16()} | _evaluation(config) | dict(config.trainer)
    if given["lr_scheduler_type"] != DEFAULTS["lr_scheduler_type"] and "lr_scheduler_kwargs" not in config.trainer:
        given.pop("lr_scheduler_kwargs")
    # The packs are in their order already, over all epochs.
    fixed = {
        "num_train_epochs": 1,
        "output_dir": config.output,
        "seed": config.seed,
        "remove_unused_columns": False,
        "dataloader_drop_last": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
        "accelerator_config": {"dispatch_batches": False},
        "hub_strategy": "end",
    }
    if given.get("fsdp") and not torch.accelerator.is_available():
        raise TrainConfigError(
            "trainer.fsdp shards a draft over GPUs, and there are none: Accelerate would train whole copies without a "
            "word; leave it out, and torchrun does that"
        )
    given.setdefault("report_to", ["tensorboard"] if find_spec("tensorboard") else [])
    try:
        return TrainingArguments(**(given | fixed))
    except (ImportError, TypeError, ValueError) as error:
        raise TrainConfigError(f"trainer of the training config: {first_sentence(error)}") from error


def num_draws(config: TrainConfig, arguments: TrainingArguments, num_packs: int) -> int:
    """How many packs are trained, each as often as it comes: of max_steps, or of the epochs."""
    packs_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if arguments.max_steps > 0:
        return int(arguments.max_steps * packs_per_step)
    num_epochs = float(config.trainer.get("num_train_epochs", DEFAULTS["num_train_epochs"]))
    draws = round(num_epochs * num_packs)
    if draws < packs_per_step:
        raise TrainConfigError(
            f"a step takes {packs_per_step} packed rows, and the data has {num_packs}, {num_epochs:g} times: give more "
            "data, more trainer.num_train_epochs, or a smaller data.max_length"
        )
    return draws


def _evaluation(config: TrainConfig) -> dict[str, Any]:
    """Every checkpoint is measured, and the best is kept."""
    save_steps = config.trainer.get("save_steps", DEFAULTS["save_steps"])
    return {
        "eval_strategy": "steps",
        "eval_steps": save_steps,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_acceptance_length",
        "greater_is_better": True,
    }


def _has_fast_bf16() -> bool:
    if torch.cuda.is_available():
        return bool(is_torch_bf16_gpu_available())
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
