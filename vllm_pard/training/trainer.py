"""A plain training loop: AdamW, warm-up and linear decay, checkpoints that a later run picks up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ScheduleConfig", "TrainingLog", "learning_rate", "train"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Length and pace of one run."""

    num_steps: int
    learning_rate: float
    warmup_steps: int = 100
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    checkpoint_every: int = 200
    log_every: int = 50

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.checkpoint_every < 1 or self.log_every < 1:
            raise ValueError(f"num_steps, checkpoint_every and log_every must be 1 or more; got {self}")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate must be between 0 and 1; got {self.learning_rate}")
        if not 0 <= self.warmup_steps <= self.num_steps:
            raise ValueError(f"warmup_steps must be between 0 and num_steps={self.num_steps}; got {self.warmup_steps}")


@dataclass
class TrainingLog:
    """What a run has done so far, over all its interruptions."""

    step: int
    wall_time_s: float
    losses: list[tuple[int, float]]  # (step, mean loss since the last point)


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """Linear warm-up, then linear decay to zero."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (config.num_steps - step) / max(1, config.num_steps - config.warmup_steps)
    return config.learning_rate * min(warmup, left)


def train(
    model: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    config: ScheduleConfig,
    checkpoint: Path,
    report: Callable[[str], None],
) -> TrainingLog:
    """Train `model` in place; start from `checkpoint` if it exists.

    Args:
        model: the module whose parameters are trained.
        loss_of_step: builds the batch of a step and returns its scalar loss. It must depend on the step alone:
            that makes an interrupted run end as an unbroken one.
        config: the schedule.
        checkpoint: file for the state; written every `checkpoint_every` steps and at the end.
        report: takes one progress line.

    Raises:
        OSError: the checkpoint cannot be written.
        FloatingPointError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
    log = _load(checkpoint, model, optimizer)
    model.train()
    started, time_before, first_step = time.monotonic(), log.wall_time_s, log.step
    recent: list[float] = []
    for step in range(first_step, config.num_steps):
        recent.append(_update(model, optimizer, loss_of_step(step), learning_rate(step, config), config.max_grad_norm))
        elapsed = time.monotonic() - started
        log.step, log.wall_time_s = step + 1, time_before + elapsed
        is_last = log.step == config.num_steps
        if log.step % config.log_every == 0 or is_last:
            loss = _add_point(log, recent)
            eta = elapsed / (log.step - first_step) * (config.num_steps - log.step)
            report(f"step {log.step}/{config.num_steps} loss {loss:.4f} eta {eta:.0f} s")
            recent.clear()
        if log.step % config.checkpoint_every == 0 or is_last:
            _save(checkpoint, model, optimizer, log)
    model.eval()
    return log


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, max_grad_norm: float
) -> float:
    """One optimizer step; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _add_point(log: TrainingLog, recent: list[float]) -> float:
    """Put the mean of the losses since the last point on the curve."""
    loss = sum(recent) / len(recent)
    if not loss < float("inf"):
        raise FloatingPointError(f"the loss must stay finite; it is {loss} at step {log.step}: lower learning_rate")
    log.losses.append((log.step, round(loss, 5)))
    return loss


def _load(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingLog:
    if not checkpoint.exists():
        return TrainingLog(step=0, wall_time_s=0.0, losses=[])
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return TrainingLog(step=state["step"], wall_time_s=state["wall_time_s"], losses=state["losses"])


def _save(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, log: TrainingLog) -> None:
    """Write beside and rename, so that an interruption leaves the last checkpoint whole."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": log.step,
        "wall_time_s": log.wall_time_s,
        "losses": log.losses,
    }
    beside = checkpoint.with_suffix(".tmp")
    try:
        torch.save(state, beside)
        os.replace(beside, checkpoint)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        raise OSError(
            f"the checkpoint {checkpoint.name} could not be written ({error}); free some disk space or choose another "
            "output folder, then run the same command again: it goes on from the last checkpoint"
        ) from error
