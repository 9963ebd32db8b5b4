"""Without a terminal, lines tell what is going on."""

import sys
import time

import pytest

from vllm_pard.bench.methods import METHODS, Contender
from vllm_pard.bench.plan import Step
from vllm_pard.bench.timetable import Timetable
from vllm_pard.cli import bench_progress

NONE = Contender(name="none", label="none", method=METHODS["none"], num_speculative_tokens=0)
STEPS = [Step(kind="start", contender=NONE, in_words=f"starting number {number}") for number in range(1, 51)]


def lines_of(seconds_a_step: float, num_steps: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with bench_progress.progress(Timetable(STEPS)) as on_step:
        for step in STEPS[:num_steps]:
            on_step(step)
            time.sleep(seconds_a_step)
    captured = capsys.readouterr()
    assert captured.out == ""  # results go there
    return captured.err.splitlines()


def test_the_first_step_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(0.2, 1, capsys) == ["step 1 of 50: starting number 1"]


def test_no_more_than_a_line_each_interval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_progress, "SECONDS_BETWEEN_LINES", 0.5)
    lines = lines_of(0.02, 50, capsys)  # a second in all
    assert 2 <= len(lines) <= 5
    assert lines[0] == "step 1 of 50: starting number 1"


def test_a_long_step_is_told_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_progress, "SECONDS_BETWEEN_LINES", 0.1)
    lines = lines_of(0.5, 1, capsys)
    assert len(lines) >= 2
    assert set(lines) == {"step 1 of 50: starting number 1"}


def test_nothing_is_told_where_nothing_began(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(0.0, 0, capsys) == []


def test_a_terminal_gets_a_bar_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Timetable, "seconds_left", 300.0)
    with bench_progress.progress(Timetable(STEPS)) as on_step:
        on_step(STEPS[0])
        on_step(STEPS[1])
        time.sleep(0.3)
    captured = capsys.readouterr()
    assert "starting number 2" in captured.err
    assert "2/50" in captured.err
    assert "about 5 min left" in captured.err
    assert captured.out == ""
