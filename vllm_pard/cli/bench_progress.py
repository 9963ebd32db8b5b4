"""What a long command is doing: a bar on a terminal, else a line now and then. All on stderr, beside the results."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from vllm_pard.bench.plan import Step
from vllm_pard.bench.timetable import Timetable

SECONDS_BETWEEN_LINES = 10.0

OnStep = Callable[[Step], None]


@contextmanager
def progress(timetable: Timetable) -> Iterator[OnStep]:
    """Gives the function that is to be called as each step begins."""
    with _bar(timetable) if sys.stderr.isatty() else _lines(timetable, sys.stderr) as on_step:
        yield on_step


@contextmanager
def _bar(timetable: Timetable) -> Iterator[OnStep]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class LeftColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(timetable.left_in_words)

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # The stream itself: sys.stderr and sys.stdout are others while a client is silenced.
    console = Console(file=sys.stderr, highlight=False)
    with Progress(*columns, TimeElapsedColumn(), LeftColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=timetable.num_steps)

        def on_step(step: Step) -> None:
            timetable.begin(step)
            bar.update(task, description=step.in_words, completed=timetable.num_begun)

        yield on_step


@contextmanager
def _lines(timetable: Timetable, stream: TextIO) -> Iterator[OnStep]:
    """The first line at once, then one every ten seconds."""
    begun, ended = threading.Event(), threading.Event()

    def on_step(step: Step) -> None:
        timetable.begin(step)
        begun.set()

    def tell() -> None:
        begun.wait()
        while not ended.is_set():
            print(timetable.in_words, file=stream, flush=True)
            ended.wait(SECONDS_BETWEEN_LINES)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield on_step
    finally:
        ended.set()
        begun.set()
        teller.join()
