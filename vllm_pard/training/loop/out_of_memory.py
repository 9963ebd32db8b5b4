"""What to do where a run does not fit into memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainingArguments

from vllm_pard.errors import PardError, first_sentence
from vllm_pard.training.options.train_config import TrainConfig

__all__ = ["DoesNotFit", "fits", "is_out_of_memory"]


class DoesNotFit(PardError):
    """More memory is wanted than there is; what was saved before stays."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python's, torch's or the system's allocator has said no. torch's for CPUs has no class of its own."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def fits(config: TrainConfig, arguments: TrainingArguments, *, trains: bool) -> Iterator[None]:
    """Around the loading of models, or around what trains them: raises DoesNotFit, which says what would fit."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = _for_training(config, arguments) if trains else _for_loading(config)
        what = "a step of training does" if trains else "the models do"
        raise DoesNotFit(
            f"{what} not fit into memory ({first_sentence(error)}): {', or '.join(advice)}; "
            + ("the same command goes on from the last checkpoint" if trains else "nothing was changed")
        ) from error


def _for_training(config: TrainConfig, arguments: TrainingArguments) -> list[str]:
    advice = [f"lower data.max_length from {config.data.max_length}"]
    if arguments.per_device_train_batch_size > 1:
        size, steps = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
        advice.append(
            f"lower trainer.per_device_train_batch_size from {size} and raise trainer.gradient_accumulation_steps from "
            f"{steps}"
        )
    if not arguments.gradient_checkpointing:
        advice.append("set trainer.gradient_checkpointing to true")
    if config.runs_target and config.target_cache is None:
        advice.append("name a folder as target_cache, so that the target is not beside the draft")
    advice.append("share the draft among more processes (torchrun, trainer.fsdp)")
    return advice


def _for_loading(config: TrainConfig) -> list[str]:
    advice = ["take a smaller draft" if config.target is None else "take a smaller target or draft"]
    if config.runs_target:
        advice.append("compute target_cache on a machine with more memory and bring the folder here")
    return advice
