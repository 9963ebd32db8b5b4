"""What a run tells while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from vllm_pard.training.loop.pace import Pace, Spent

__all__ = ["Watch"]


class Watch(TrainerCallback, ExportableState):
    """A line for each log: step, loss, tokens/s, time left; and for each evaluation.

    Args:
        report: takes a line.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report, self.pace = report, Pace()
        self._started = time.monotonic()
        self._first_step = 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"args": {}, "attributes": {"spent": list(self.pace.spent)}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started, self._first_step = time.monotonic(), state.global_step
        saved: Any = (state.stateful_callbacks or {}).get(type(self).__name__)
        is_saved = isinstance(saved, dict) and state.global_step > 0
        self.pace.restore(Spent(*saved["attributes"]["spent"]) if is_saved else Spent())
        if state.is_world_process_zero and state.global_step:
            self._report(f"going on from step {state.global_step} of {state.max_steps}")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self._report(", ".join(self._of_step(state, logs)))
        elif "eval_acceptance_length" in logs:
            self._report(_of_evaluation(state, logs))

    def _of_step(self, state: TrainerState, logs: dict[str, float]) -> list[str]:
        elapsed = time.monotonic() - self._started
        left = elapsed / max(state.global_step - self._first_step, 1) * (state.max_steps - state.global_step)
        return [
            f"step {state.global_step} of {state.max_steps}",
            f"loss {logs['loss']:.4f}",
            f"{logs['tokens_per_second']:,.0f} tokens/s",
            f"{_time(left)} left",
        ]


def _of_evaluation(state: TrainerState, logs: dict[str, float]) -> str:
    parts = [f"step {state.global_step}: acceptance length {logs['eval_acceptance_length']:.3f} on held-out answers"]
    if "eval_acceptance_length_independent" in logs:
        parts.append(f"{logs['eval_acceptance_length_independent']:.3f} without features")
    return ", ".join(parts)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
