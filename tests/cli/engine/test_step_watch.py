"""Step costs found in an engine whose costs are known."""

from collections.abc import Iterable
from typing import Any

import pytest

from vllm_pard.cli.engine.step_watch import NUM_DRAFTED, NUM_PLAIN, NUM_SKIPPED, StepWatch

PLAIN_S, DRAFT_S, VERIFY_S = 0.010, 0.004, 0.006  # of a step; a step with drafts takes all three


class FakeEngine:
    """Steps as vLLM's model runner V1: what is held back in a step is missing in the next; drafting goes on."""

    def __init__(self, *, can_hold: bool = True) -> None:
        self.now, self.drafting, self.can_hold = 0.0, 0.0, can_hold
        self.holds, self.has_drafts = False, True
        self.num_plain = 0

    def clock(self) -> float:
        return self.now

    def hold(self, hold: bool) -> float | None:
        if not self.can_hold:
            return None
        self.holds = hold
        return self.drafting

    def step(self) -> None:
        self.now += PLAIN_S + DRAFT_S + (VERIFY_S if self.has_drafts else 0.0)
        self.drafting += DRAFT_S
        self.num_plain += not self.has_drafts
        self.has_drafts = not self.holds


def run(engine: FakeEngine, steps: Iterable[set[str]], *, can_ask: bool = True) -> tuple[StepWatch, list[Any]]:
    watch = StepWatch(engine.hold if can_ask else None, engine.clock)
    found = []
    for requests in steps:
        engine.step()
        found.append(watch.after_step(requests))
    return watch, [costs for costs in found if costs]


ENOUGH = 1 + NUM_SKIPPED + NUM_DRAFTED + 1 + NUM_PLAIN


def test_costs_are_those_of_the_engine() -> None:
    engine = FakeEngine()
    _, [costs] = run(engine, [{"a", "b"}] * (ENOUGH + 50))
    assert costs == {
        "batch_size": 2,
        "plain_ms": pytest.approx(10.0),
        "step_ms": pytest.approx(20.0),
        "draft_ms": pytest.approx(4.0),
    }
    assert not engine.holds
    assert engine.num_plain == NUM_PLAIN + 1, "the step after a window has no drafts yet"


def test_steps_of_other_batch_sizes_do_not_count_as_drafting_of_this_one() -> None:
    three, two = {"a", "b", "c"}, {"a", "b"}
    _, [costs] = run(FakeEngine(), [three, three, two] * 6 + [two] * 30)
    assert costs["batch_size"] == 2
    assert costs["draft_ms"] == pytest.approx(4.0)


def test_steps_that_read_prompts_are_left_out() -> None:
    engine = FakeEngine()
    watch = StepWatch(None, engine.clock)
    for number in range(40):
        engine.step()
        engine.now += 1.0 if number % 5 == 0 else 0.0  # a prompt
        watch.after_step({"a", f"b{number // 5}"})
    assert watch.medians() == {2: (pytest.approx(20.0), 32 - NUM_SKIPPED)}


@pytest.mark.parametrize("end", [{"a", "new"}, {"a"}, set()], ids=["newcomer", "half gone", "all gone"])
def test_a_window_that_is_disturbed_is_closed_and_opened_again(end: set[str]) -> None:
    engine = FakeEngine()
    both = {"a", "b"}
    _, found = run(engine, [both] * (ENOUGH - 3) + [end])
    assert found == []
    assert not engine.holds
    engine = FakeEngine()
    _, found = run(engine, [both] * (ENOUGH - 3) + [end] + [both] * (2 * ENOUGH))
    assert [costs["batch_size"] for costs in found] == [2]
    assert found[0]["plain_ms"] == pytest.approx(10.0)
    assert found[0]["step_ms"] == pytest.approx(20.0)


def test_each_batch_size_twice_another_is_measured_once() -> None:
    engine = FakeEngine()
    four = {"a", "b", "c", "d"}
    steps = [four] * 60 + [four - {"d"}] * 60 + [{"a", "b"}] * 60 + [{"a"}] * 60
    _, found = run(engine, steps)
    assert [costs["batch_size"] for costs in found] == [4, 2, 1]


@pytest.mark.parametrize(("can_hold", "can_ask"), [(False, True), (True, False)], ids=["V2", "plain"])
def test_engines_that_hold_nothing_back(can_hold: bool, can_ask: bool) -> None:
    engine = FakeEngine(can_hold=can_hold)
    watch, found = run(engine, [{"a"}] * 100, can_ask=can_ask)
    assert found == []
    assert engine.num_plain == 0
    assert watch.medians() == {1: (pytest.approx(20.0), 99 - NUM_SKIPPED)}


def test_closing_lets_drafts_go() -> None:
    engine = FakeEngine()
    watch, _ = run(engine, [{"a"}] * (ENOUGH - 2))
    assert engine.holds
    watch.close()
    assert not engine.holds
