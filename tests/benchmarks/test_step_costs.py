"""What a step costs: the arithmetic, and engines that end."""

from collections.abc import Iterator
from typing import Any

import pytest
import step_costs
from engine_processes import Load, compared_rows, measure, ready


class Answers:
    """An engine that answers so often and then ends."""

    def __init__(self, label: str, num_answers: int, log: list[str]) -> None:
        self.label, self.log = label, log
        self.answers: Iterator[dict[str, Any]] = iter([{"seconds": 1.0}] * num_answers)

    def read(self) -> dict[str, Any] | None:
        return next(self.answers, None)

    def ask(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        self.log.append(self.label)
        return self.read()


def test_a_steps_time_is_without_the_prompts() -> None:
    """Two requests, 20 verifications each; plain decoding takes a step for each token behind the first."""
    run = {"prompt_seconds": 0.5, "seconds": 0.7, "num_drafts": 40, "num_accepted_tokens": 100}
    row = step_costs.row("pard", 2, [run, run | {"seconds": 0.9}, run])
    assert (row["step_ms"], row["step_ms_extremes"]) == (10.0, [10.0, 20.0])
    assert row["acceptance_length"] == 3.5
    assert row["tokens_per_second"] == pytest.approx(2 * step_costs.MAX_TOKENS / 0.7, abs=0.1)
    plain = step_costs.row("none", 2, [{"prompt_seconds": 0.1, "seconds": 0.735, "num_drafts": 0, **NOTHING}])
    assert plain["step_ms"] == pytest.approx(1e3 * 0.635 / (step_costs.MAX_TOKENS - 1))
    assert step_costs.compared(plain, plain)["step_ratio"] == 1.0
    compared = step_costs.compared(row, plain)
    assert compared["step_ratio"] == 2.0
    assert compared["speed_up"] == pytest.approx(0.735 / 0.7, abs=1e-3)


NOTHING = {"num_accepted_tokens": 0}


def test_engines_alternate_and_one_that_ends_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    log: list[str] = []
    engines = [Answers("a", 99, log), Answers("b", 99, log), Answers("c", 5, log), Answers("d", 0, log)]
    load = Load(script="", sizes=[1, 4], ask=lambda *asked: {}, row=step_costs.row, compared=step_costs.compared)
    found = measure(ready(engines), load, 3)  # type: ignore[arg-type, list-item]
    assert {key: len(runs) for key, runs in found.items()} == {(label, size): 3 for label in "ab" for size in (1, 4)}
    assert log[:9] == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    told = capsys.readouterr().err
    assert "the engine of c ended" in told
    assert "the engine of d ended" in told
    assert "engine of a" not in told


def test_rows_are_compared_with_the_first_methods_of_their_size() -> None:
    load = Load(
        script="",
        sizes=[1, 4],
        ask=lambda *asked: {},
        row=lambda label, size, runs: {"method": label, "seconds": runs[0]["seconds"]},
        compared=lambda row, first: row | {"ratio": row["seconds"] / first["seconds"]},
    )
    seconds = {("none", 1): 2.0, ("pard", 1): 1.0, ("none", 4): 4.0, ("pard", 4): 6.0}
    rows = compared_rows(load, {key: [{"seconds": each}] for key, each in seconds.items()})
    assert [(row["method"], row["ratio"]) for row in rows] == [("none", 1), ("pard", 0.5), ("none", 1), ("pard", 1.5)]
