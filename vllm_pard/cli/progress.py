"""How far a long command is: a bar on a terminal, elsewhere a line every ten seconds."""

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A context manager. `total` counts `unit`s; the time left is told once the first of them is done."""

    def __init__(self, console: Console, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._total, self._unit, self._clock = console, total, unit, clock
        self._started = self._told = clock()
        columns = (SpinnerColumn(), *Bar.get_default_columns()[:-1], TimeElapsedColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total)

    def announce(self, what: str) -> None:
        """Say what takes a while before anything is done; the time left is reckoned from the last of these."""
        self._started = self._told = self._clock()
        self._bar.update(self._task, description=what)
        if not self._console.is_terminal:
            self.say(f"{what} ...", style="dim")

    def update(self, done: int, *notes: str) -> None:
        """Show how many are done, and what else is worth knowing."""
        now = self._clock()
        words = [*notes, *self._time_left(done, now)]
        self._bar.update(self._task, completed=done, description=", ".join(words))
        if not self._console.is_terminal and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            self.say(", ".join([f"{done} of {self._total} {self._unit}", *words]))

    def say(self, line: str, style: str | None = None) -> None:
        """A line of its own, above the bar."""
        self._console.print(line, style=style, markup=False, soft_wrap=not self._console.is_terminal)

    def _time_left(self, done: int, now: float) -> list[str]:
        if not 0 < done < self._total:
            return []
        seconds = (now - self._started) / done * (self._total - done)
        return [f"{timedelta(seconds=round(seconds))} left"]

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()
