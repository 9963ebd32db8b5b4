"""The scheduler that chooses how many tokens are drafted: it keeps outputs, and sees what the choice needs."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from engine import run_scenario
from fake_scheduler import PROMPT, Scheduler

from vllm_pard.choice import LengthChoice, TreeChoice

LENGTHS = [8, 4, 0, 2, 8, 0]
CLOCK = count()


@pytest.mark.engine
def test_lengths_that_change_keep_outputs(tiny_pair: tuple[Path, Path], engine: dict[str, Any]) -> None:
    target, draft = tiny_pair
    result = run_scenario(
        "scenarios:changing_lengths", target=target, draft=draft, lengths=LENGTHS, num_steps=5, **engine
    )  # fmt: skip
    assert result["pard"] == result["plain"]
    seen = {number for numbers in result["verified"] for number in numbers}
    assert {0, 4, 8} <= seen
    assert result["counts"]["num_accepted_tokens"] > 0
    costs = {k: number for of_size in result["costs"].values() for k, number in of_size.items()}
    assert {"0", "8"} <= costs.keys()


class Choice(LengthChoice):
    """Chooses what it is told, and keeps what it is told of."""

    def __init__(self, *ks: int) -> None:
        super().__init__(range(5))
        self.ks, self.steps, self.drafts = list(ks), [], []
        self.num_prompt_tokens: list[int] = []

    def choose(self, batch_size: int) -> int:
        return self.ks.pop(0)

    def observe_step(
        self, batch_size: int, k: int | None, seconds: float, num_tokens: int, num_prompt_tokens: int = 0
    ) -> None:
        self.steps.append((batch_size, k, seconds, num_tokens))
        self.num_prompt_tokens.append(num_prompt_tokens)

    def observe_drafts(self, k: int, num_accepted: Any) -> None:
        self.drafts.append((k, list(num_accepted)))


def run_steps(scheduler: Scheduler, choice: Choice, num_accepted: int = 0) -> list[dict[str, int]]:
    """Until the choice has no more to say; a second each. How many drafts each request had verified."""
    scheduler.clock = CLOCK.__next__
    scheduler.choice, found = choice, []
    while choice.ks:
        output = scheduler.schedule()
        found.append({name: number - 1 for name, number in output.num_scheduled_tokens.items()})
        scheduler.finish(output, lambda num_drafts: min(num_accepted, num_drafts))
    return found


def test_trees_are_chosen_by_what_trees_yield() -> None:
    assert type(Scheduler("v2").choice) is LengthChoice
    assert type(Scheduler("v2", tree_depth=8).choice) is TreeChoice


def test_a_step_is_of_a_kind_if_it_drafts_what_it_verifies() -> None:
    scheduler, choice = Scheduler("v2"), Choice(4, 4, 4, 2, 2, 2, 0, 0, 0)
    scheduler.add("a", "b")
    found = run_steps(scheduler, choice, num_accepted=1)
    assert [of_step["a"] for of_step in found] == [0, 4, 4, 4, 2, 2, 2, 0, 0]
    assert (
        choice.steps
        == [(2, 4, 1, 4)] * 2 + [(2, None, 1, 4)] + [(2, 2, 1, 4)] * 2 + [(2, None, 1, 4)] + [(2, 0, 1, 2)] * 2
    )
    assert choice.drafts == [(4, [1])] * 6 + [(2, [1])] * 6


def test_on_v1_as_many_are_drafted_as_are_chosen() -> None:
    scheduler, choice = Scheduler("v1"), Choice(4, 4, 1, 1)
    scheduler.add("a")
    assert [of_step["a"] for of_step in run_steps(scheduler, choice)] == [0, 4, 4, 1]
    assert set(scheduler.dynamic_sd_lookup) == {1}


def test_on_v1_who_was_there_without_drafts_has_none_again() -> None:
    """The draft has not read what it generated; a request that comes later is drafted for."""
    scheduler, choice = Scheduler("v1"), Choice(3, 3, 0, 3)
    scheduler.add("a")
    assert [of_step["a"] for of_step in run_steps(scheduler, choice)] == [0, 3, 3, 0]
    scheduler.add("b")
    found = run_steps(scheduler, Choice(3, 3))
    assert found[-1] == {"a": 0, "b": 3}
    del scheduler.requests["a"]
    run_steps(scheduler, Choice(3))
    scheduler.add("a")  # another one of this name
    assert run_steps(scheduler, Choice(3, 3))[-1] == {"a": 3, "b": 3}


def test_on_v1_drafts_that_no_request_can_use_are_not_made() -> None:
    scheduler = Scheduler("v1")
    scheduler.add("a")
    run_steps(scheduler, Choice(3, 0))
    alone = Choice(3, 3, 3)
    run_steps(scheduler, alone)
    assert set(scheduler.dynamic_sd_lookup) == {0}
    assert [step[:2] for step in alone.steps] == [(1, 0)] * 3, "steps without drafts, at their cost"
    scheduler.add("b")
    beside = Choice(3, 3, 3)
    assert run_steps(scheduler, beside)[-1] == {"a": 0, "b": 3}
    assert set(scheduler.dynamic_sd_lookup) == {3}
    assert [step[1] for step in beside.steps] == [None] * 3, "of no kind"


def test_steps_that_waited_for_someone_tell_nothing() -> None:
    scheduler, choice = Scheduler("v2"), Choice(4, 4)
    scheduler.add("a")
    run_steps(scheduler, choice)
    del scheduler.requests["a"]
    scheduler.add("b")
    again = Choice(4, 4, 4)
    run_steps(scheduler, again)
    assert again.steps == [(1, 4, 1, 1)] * 2, "the first of three came after who knows what"


@pytest.mark.parametrize(("names", "told"), [("abcdefg", [PROMPT, 0]), ("abcdef", [0])])
def test_prompts_are_told_unless_they_hide_what_drafts_cost(names: str, told: list[int]) -> None:
    """8 x 4 drafts are more than the prompt's tokens, 7 x 4 are not."""
    scheduler, choice = Scheduler("v2"), Choice(4, 4, 4)
    scheduler.add(*names)
    run_steps(scheduler, choice)
    scheduler.add("newcomer", has_read=False)
    again = Choice(4, 4)
    run_steps(scheduler, again)
    assert again.num_prompt_tokens == told
    assert again.steps == [(len(names) + 1, 4, 1, len(names) + 1)] * len(told)
