"""How far a benchmark has come, and how long it may still take."""

import time
from collections.abc import Callable, Sequence
from statistics import mean

from vllm_pard.bench.plan import Step

WORTH_TELLING = 5.0  # seconds


class Timetable:
    """Told of each step as it begins. `clock`: seconds, from any start."""

    def __init__(self, steps: Sequence[Step], clock: Callable[[], float] = time.monotonic) -> None:
        self._steps = steps
        self._clock = clock
        self._current: Step | None = None
        self._begun_at = 0.0
        self._knows_a_run = False
        self._seconds_to_start: list[float] = []
        self._seconds_per_request: dict[tuple[str, int], float] = {}  # the latest, by label and concurrency
        self.num_begun = 0

    @property
    def num_steps(self) -> int:
        return len(self._steps)

    def begin(self, step: Step) -> None:
        """The step before has ended."""
        now = self._clock()
        if self._current:
            self._learn(self._current, now - self._begun_at)
        self._current, self._begun_at = step, now
        self.num_begun += 1

    @property
    def seconds_in_step(self) -> float:
        return self._clock() - self._begun_at if self._current else 0.0

    @property
    def seconds_left(self) -> float | None:
        """From what was seen so far; None before a run has been measured."""
        if self._current is None or not self._knows_a_run:
            return None
        ahead = sum(map(self._expected, self._steps[self.num_begun :]))
        return max(self._expected(self._current) - self.seconds_in_step, 0.0) + ahead

    @property
    def left_in_words(self) -> str:
        """ "about 3 min left", or nothing where that is not known."""
        seconds = self.seconds_left
        if seconds is None:
            return ""
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {max(seconds, 1):.0f} s left"

    @property
    def in_words(self) -> str:
        """Step n of N, what it is, for how long by now, how much is left."""
        doing = self._current.in_words if self._current else ""
        elapsed = f", {self.seconds_in_step:.0f} s so far" if self.seconds_in_step >= WORTH_TELLING else ""
        left = self.left_in_words
        return f"step {self.num_begun} of {self.num_steps}: {doing}{elapsed}{left and f' ({left})'}"

    def _learn(self, step: Step, seconds: float) -> None:
        if step.kind == "start":
            self._seconds_to_start.append(seconds)
            return
        self._seconds_per_request[step.contender.label, step.concurrency] = seconds / step.num_requests
        self._knows_a_run = self._knows_a_run or step.kind == "run"

    def _expected(self, step: Step) -> float:
        if step.kind == "start":
            return mean(self._seconds_to_start)
        known = self._seconds_per_request.copy()  # the one who shows it may be another thread
        alike = [seconds for (label, _), seconds in known.items() if label == step.contender.label]
        return step.num_requests * known.get((step.contender.label, step.concurrency), mean(alike or known.values()))
