"""What a decode step costs, with drafts and without, found out while an engine answers.

A step without drafts is had by holding them back for a few steps, where the engine can: outputs stay, and the draft
goes on reading, so that it misses nothing. What its forward takes in such a step is taken off again.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Set
from statistics import median
from typing import Any

NUM_SKIPPED = 2  # drafted steps, while caches and buffers grow warm
NUM_DRAFTED = 8  # before drafts are held back
NUM_PLAIN = 5
SAME_BATCH = 0.75  # requests that end leave a window what it is, down to this share of them

# Holds drafts back, or no more; seconds of drafting so far, None where the engine can't hold any back.
Hold = Callable[[bool], float | None]


class StepWatch:
    """Told after each step which requests got tokens in it; steps with newcomers, which read prompts, are left out."""

    def __init__(self, hold: Hold | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._hold, self._clock = hold, clock
        self._last, self._requests = clock(), frozenset[str]()
        self._drafted_ms: dict[int, list[float]] = defaultdict(list)  # by batch size
        # Seconds of drafting, and steps of all kinds, when the first steps of a batch size were over.
        self._drafting: dict[int, tuple[float, int]] = {}
        self._draft_ms: dict[int, float] = {}
        self._opens_at: dict[int, int] = {}  # drafted steps of a batch size before the next window
        self._measured: set[int] = set()
        self._num_steps = 0
        self._window: _Window | None = None

    def after_step(self, requests: Set[str]) -> dict[str, Any] | None:
        """Take note of a step; costs of a batch size as soon as they are known, as `StepCosts` has them."""
        now = self._clock()
        self._num_steps += 1
        milliseconds, self._last = 1000 * (now - self._last), now
        has_newcomers, self._requests = not requests <= self._requests, frozenset(requests)
        if has_newcomers or not requests:
            self._close_window()
            return None
        if self._window is None:
            self._note(len(requests), milliseconds)
            return None
        return self._continue(self._window, len(requests), milliseconds)

    def medians(self) -> dict[int, tuple[float, int]]:
        """Milliseconds of a step by batch size, and of how many steps they are the median."""
        enough = {size: ms[NUM_SKIPPED:] for size, ms in self._drafted_ms.items() if len(ms) > NUM_SKIPPED}
        return {size: (median(ms), len(ms)) for size, ms in enough.items()}

    @property
    def usual_batch_size(self) -> int:
        """That of most steps; 0 before the first."""
        return max(self._drafted_ms, key=lambda size: len(self._drafted_ms[size]), default=0)

    def close(self) -> None:
        """Hold no drafts back any more."""
        self._close_window()

    def _note(self, batch_size: int, milliseconds: float) -> None:
        steps = self._drafted_ms[batch_size]
        steps.append(milliseconds)
        if self._hold is None or any(batch_size < 2 * known and known < 2 * batch_size for known in self._measured):
            return
        if len(steps) == NUM_SKIPPED:
            seconds = self._hold(False)
            if seconds is None:
                self._hold = None
                return
            self._drafting[batch_size] = seconds, self._num_steps
            self._opens_at[batch_size] = NUM_SKIPPED + NUM_DRAFTED
        elif batch_size in self._opens_at and len(steps) >= self._opens_at[batch_size]:
            self._open_window(batch_size)

    def _open_window(self, batch_size: int) -> None:
        assert self._hold is not None
        seconds = self._hold(True)
        assert seconds is not None
        if batch_size not in self._draft_ms:
            seconds_before, num_steps_before = self._drafting[batch_size]
            drafting, num_steps = seconds - seconds_before, self._num_steps - num_steps_before
            self._draft_ms[batch_size] = 1000 * drafting / num_steps
        # Should this window be disturbed:
        self._opens_at[batch_size] = len(self._drafted_ms[batch_size]) + NUM_DRAFTED
        self._window = _Window(batch_size)

    def _continue(self, window: "_Window", batch_size: int, milliseconds: float) -> dict[str, Any] | None:
        assert self._hold is not None
        if batch_size < SAME_BATCH * window.batch_size:
            self._close_window()
            return None
        if window.started is None:  # this step still verified what was drafted before
            window.started = self._hold(True)
            return None
        window.plain_ms.append(milliseconds)
        if len(window.plain_ms) < NUM_PLAIN:
            return None
        drafting = self._close_window()
        assert drafting is not None
        self._measured.add(window.batch_size)
        return {
            "batch_size": window.batch_size,
            "plain_ms": median(window.plain_ms) - 1000 * (drafting - window.started) / NUM_PLAIN,
            "step_ms": median(self._drafted_ms[window.batch_size][NUM_SKIPPED:]),
            "draft_ms": self._draft_ms[window.batch_size],
        }

    def _close_window(self) -> float | None:
        """Draft again; the step that follows has no drafts yet and is left out like one with newcomers."""
        if self._window is None or self._hold is None:
            return None
        self._window, self._requests = None, frozenset()
        return self._hold(False)


class _Window:
    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.started: float | None = None  # seconds of drafting before the first plain step
        self.plain_ms: list[float] = []
