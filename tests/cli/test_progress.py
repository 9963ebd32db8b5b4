"""A line every ten seconds where there is no terminal."""

import io

from rich.console import Console

from vllm_pard.cli.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_without_a_terminal_a_line_every_ten_seconds() -> None:
    console, clock = Console(file=io.StringIO(), width=40), Clock()
    with Progress(console, 300, "prompts answered", clock) as progress:
        progress.announce("starting the engine")
        clock.now = 30.0
        progress.announce("answering")
        for second in range(31, 62):
            clock.now = float(second)
            progress.update(second - 30, "50.0 tokens/s", "mean acceptance length 2.10")
    speed = "50.0 tokens/s, mean acceptance length 2.10"
    assert lines(console) == [
        "starting the engine ...",
        "answering ...",
        f"10 of 300 prompts answered, {speed}, 0:04:50 left",
        f"20 of 300 prompts answered, {speed}, 0:04:40 left",
        f"30 of 300 prompts answered, {speed}, 0:04:30 left",
    ]


def test_nothing_done_has_no_time_left() -> None:
    console, clock = Console(file=io.StringIO()), Clock()
    with Progress(console, 3, "prompts answered", clock) as progress:
        clock.now = 11.0
        progress.update(0, "5.0 tokens/s")
        clock.now = 22.0
        progress.update(3)
    assert lines(console) == ["0 of 3 prompts answered, 5.0 tokens/s", "3 of 3 prompts answered"]


def test_on_a_terminal_a_bar_and_lines_above_it() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(console, 4, "prompts answered") as progress:
        progress.announce("answering")
        progress.update(1, "5.0 tokens/s")
        progress.say("a line")
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "answering ..." not in shown
    assert "a line\n" in shown
