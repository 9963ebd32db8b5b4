"""What a long command is doing: beside a bar on a terminal, else a line now and then; on stderr, as no result is."""

import sys
import threading
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A context manager. `words` tells what is being done, and how far it is; it is asked by another thread."""

    def __init__(self, total: int, words: Callable[[], str]) -> None:
        self._words = words
        # The stream itself: sys.stderr is another while a benchmark's client is silenced.
        self._console = Console(file=sys.stderr, highlight=False)
        columns = (SpinnerColumn(), _Words(words), BarColumn(), TimeElapsedColumn())
        is_terminal = self._console.is_terminal
        # What is printed meanwhile goes above the bar on a terminal, and into a file where stdout is one.
        to_terminal = sys.stdout.isatty()
        self._bar = Bar(
            *columns, console=self._console, transient=True, disable=not is_terminal, redirect_stdout=to_terminal
        )
        self._task = self._bar.add_task("", total=total)
        self._begun, self._ended = threading.Event(), threading.Event()
        self._teller = None if is_terminal else threading.Thread(target=self._tell, daemon=True)

    def show(self, num_done: int) -> None:
        """Something has begun or gone on; the first time it is told at once."""
        self._bar.update(self._task, completed=num_done)
        self._begun.set()

    def say(self, line: str, style: str | None = None) -> None:
        """A line of its own, above the bar."""
        self._console.print(line, style=style, markup=False, soft_wrap=not self._console.is_terminal)

    def end(self) -> None:
        """No more is shown, but for what is said."""
        self._bar.stop()
        self._ended.set()
        self._begun.set()

    def _tell(self) -> None:
        self._begun.wait()
        while not self._ended.is_set():
            self.say(self._words())
            self._ended.wait(SECONDS_BETWEEN_LINES)

    def __enter__(self) -> "Progress":
        self._bar.start()
        if self._teller:
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        if self._teller:
            self._teller.join()


class _Words(ProgressColumn):
    """Asked anew whenever the bar is drawn."""

    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__()
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(self._words())
