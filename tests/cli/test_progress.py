"""Without a terminal, lines tell what is going on; with one, a bar."""

import time
from itertools import count

import pytest

from vllm_pard.cli import progress
from vllm_pard.cli.progress import Progress


def lines_of(num_steps: int, seconds_a_step: float, capsys: pytest.CaptureFixture[str]) -> list[str]:
    done = [0]
    with Progress(50, lambda: f"step {done[0]} of 50") as shown:
        for number in range(1, num_steps + 1):
            done[0] = number
            shown.show(number)
            time.sleep(seconds_a_step)
    captured = capsys.readouterr()
    assert captured.out == ""  # results go there
    return captured.err.splitlines()


def test_the_first_step_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(1, 0.2, capsys) == ["step 1 of 50"]


def test_no_more_than_a_line_each_interval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.5)
    lines = lines_of(50, 0.02, capsys)  # a second in all
    assert 2 <= len(lines) <= 5
    assert lines[0] == "step 1 of 50"


def test_a_long_step_is_told_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.1)
    lines = lines_of(1, 0.5, capsys)
    assert len(lines) >= 2
    assert set(lines) == {"step 1 of 50"}


def test_nothing_is_told_where_nothing_began(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(0, 0.0, capsys) == []


def test_long_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, lambda: "words") as shown:
        shown.say("a line of more than eighty characters " * 5)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_gets_a_bar_with_words_that_are_always_new(
    terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = count(1)
    with Progress(4, lambda: f"asked {next(asked)} times") as shown:
        shown.show(1)
        shown.say("a line above")
        time.sleep(0.5)
    captured = capsys.readouterr()
    assert "asked 3 times" in captured.err
    assert "a line above\n" in captured.err
    assert "0:00:0" in captured.err
    assert captured.out == ""


def test_what_is_printed_beside_a_bar_stays_where_it_was_sent(
    terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vllm-pard generate ... > answers.txt` shows the bar and fills the file."""
    with Progress(1, lambda: "words") as shown:
        shown.show(0)
        print("an answer")
    captured = capsys.readouterr()
    assert captured.out == "an answer\n"
    assert "words" in captured.err
