"""How fast a run is, and what it has cost so far: over all its processes and interruptions, evaluations left out."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

__all__ = ["Pace", "Spent"]


class Spent(NamedTuple):
    """What training has taken."""

    num_tokens: int = 0  # of packed rows, padding included
    num_rows: int = 0  # through the draft: tokens and mask tokens
    seconds: float = 0.0


class Pace:
    """A clock that is stopped while nothing is trained, and counters beside it."""

    def __init__(self) -> None:
        self.spent = Spent()  # when all processes last met
        self._last_log = self.spent
        self._num_tokens = self._num_rows = 0
        self._started = time.monotonic()

    def restore(self, spent: Spent) -> None:
        """Go on from a checkpoint, or from nothing: the clock starts."""
        self.spent = self._last_log = spent
        self._started = time.monotonic()

    def count(self, num_tokens: int, num_rows: int) -> None:
        """A batch of this process."""
        self._num_tokens += num_tokens
        self._num_rows += num_rows

    def pause(self, seconds: float) -> None:
        """Something else took this long."""
        self._started += seconds

    def meet(self, accelerator: Accelerator) -> Spent:
        """Add up what all processes have done; each of them has to call it."""
        now = time.monotonic()
        counts = torch.tensor([self._num_tokens, self._num_rows], device=accelerator.device)
        num_tokens, num_rows = accelerator.reduce(counts, reduction="sum").tolist()
        before = self.spent
        self.spent = Spent(
            before.num_tokens + num_tokens, before.num_rows + num_rows, before.seconds + now - self._started
        )
        self._num_tokens = self._num_rows = 0
        self._started = now
        return self.spent

    def as_log(self, accelerator: Accelerator) -> dict[str, float]:
        """Speed since the last call, and all that was spent."""
        spent, last = self.meet(accelerator), self._last_log
        self._last_log = spent
        seconds = max(spent.seconds - last.seconds, 1e-9)
        return {
            "tokens_per_second": round((spent.num_tokens - last.num_tokens) / seconds),
            "rows_per_second": round((spent.num_rows - last.num_rows) / seconds),
            **spent_as_log(spent),
        }


def spent_as_log(spent: Spent, prefix: str = "") -> dict[str, Any]:
    """Rows and seconds by name."""
    return {f"{prefix}num_rows": spent.num_rows, f"{prefix}seconds": round(spent.seconds, 2)}
