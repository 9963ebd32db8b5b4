"""What prompts take in steps that decode too."""

from collections.abc import Iterator
from random import Random

import pytest

from vllm_pard.prompt_cost import PromptCost, Step


def steps(*, per_token: float, per_step: float, noise: float, numbers: tuple[int, ...]) -> Iterator[Step]:
    """Of a kind that takes 7 ms; one of twenty is delayed by anything."""
    rng = Random(0)
    while True:
        num_prompt_tokens = rng.choice(numbers)
        seconds = 0.007 + per_token * num_prompt_tokens + per_step * (num_prompt_tokens > 0)
        yield Step(seconds * (1 + noise * rng.random()) + 1.0 * (rng.random() < 0.05), num_prompt_tokens)


@pytest.mark.parametrize("per_token", [0.0, 2e-5, 2.5e-3])
@pytest.mark.parametrize("per_step", [0.0, 0.01])
@pytest.mark.parametrize("numbers", [(0, 40, 90), (40, 90, 130), (0, 60)], ids=str)
def test_is_found(per_token: float, per_step: float, numbers: tuple[int, ...]) -> None:
    """Where every step reads some, what there being any takes is no different from the step's own."""
    found, source = PromptCost(5), steps(per_token=per_token, per_step=per_step, noise=0.02, numbers=numbers)
    before = next(source)
    for _ in range(300):
        step = next(source)
        found.observe(before, step)
        before = step
    most, least = numbers[-1], numbers[0]
    wanted = per_token * (most - least) + per_step * (least == 0)
    allowed = 0.02 * (0.007 + per_token * most + per_step) + 1e-4
    assert found.of(Step(1.0, most)) - found.of(Step(1.0, least)) == pytest.approx(wanted, abs=allowed)
    assert found.of(Step(1.0, 0)) == 0.0


def test_a_few_steps_say_nothing() -> None:
    found = PromptCost(5)
    for _ in range(4):
        found.observe(Step(0.1, 0), Step(0.2, 50))
        found.observe(Step(0.2, 50), Step(0.3, 100))
    assert found.of(Step(1.0, 50)) == 0.0
    found.observe(Step(0.2, 0), Step(0.2, 0))
    assert found.of(Step(1.0, 50)) == 0.0
    found.observe(Step(0.2, 100), Step(0.1, 0))
    assert found.of(Step(1.0, 50)) > 0.0


def test_prompts_never_make_a_step_shorter() -> None:
    found = PromptCost(2)
    for _ in range(9):
        found.observe(Step(0.3, 0), Step(0.2, 50))
        found.observe(Step(0.2, 50), Step(0.1, 100))
    assert found.of(Step(1.0, 50)) == 0.0
