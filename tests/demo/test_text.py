from __future__ import annotations

import re
from random import Random
from typing import Any

import pytest

from vllm_pard.demo.text.arithmetic import ARITHMETIC
from vllm_pard.demo.text.code_lists import LIST_FAMILIES, UNSEEN_CODE
from vllm_pard.demo.text.code_values import VALUE_FAMILIES
from vllm_pard.demo.text.corpus import EVALUATION_SPLITS, evaluation_samples, is_held_out, training_samples
from vllm_pard.demo.text.sample import MASK, SPECIAL_TOKENS
from vllm_pard.demo.text.stories import STORIES
from vllm_pard.demo.text.stories_more import MORE_STORIES, UNSEEN_STORIES

WORKED = (*STORIES, *MORE_STORIES, *UNSEEN_STORIES, *ARITHMETIC)
CODE = (*LIST_FAMILIES, *VALUE_FAMILIES, *UNSEEN_CODE)
OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
NUMBERS = [-7, 3, 60, 0, 12, 61, 2, -10, 25, 24]


def samples_of(generator: Any, num_samples: int = 200) -> list[Any]:
    rng = Random(0)
    return [generator(rng) for _ in range(num_samples)]


@pytest.mark.parametrize("generator", WORKED, ids=lambda g: g.__name__)
def test_every_step_of_a_worked_answer_is_right(generator: Any) -> None:
    for sample in samples_of(generator):
        equations = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", sample.answer)
        assert equations, sample.answer
        for a, operator, b, result in equations:
            assert OPERATORS[operator](int(a), int(b)) == int(result), sample.answer
        assert sample.answer.splitlines()[-1] == f"The answer is {equations[-1][3]}."


@pytest.mark.parametrize("generator", WORKED, ids=lambda g: g.__name__)
def test_a_worked_answer_starts_from_the_numbers_of_its_question(generator: Any) -> None:
    for sample in samples_of(generator):
        known = set(re.findall(r"\d+", sample.question))
        if generator in ARITHMETIC:
            known |= {number for q in known for number in (str(int(q) // 10 * 10), str(int(q) % 10))}
        for a, _, b, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", sample.answer):
            known.add(result)
            # A quotient is found before it is used: 7 * 8 = 56 comes from the known 56.
            assert {a, b} <= known or (generator.__name__ == "division" and a in known), sample


@pytest.mark.parametrize("generator", CODE, ids=lambda g: g.__name__)
def test_code_runs_and_has_its_request_as_docstring(generator: Any) -> None:
    for sample in samples_of(generator):
        function = run_definition(sample.answer)
        assert function.__name__ in sample.question
        summary = function.__doc__.splitlines()[0].rstrip(".")
        assert summary[1:] in sample.question


def run_definition(source: str) -> Any:
    names: dict[str, Any] = {}
    exec(source, names)
    del names["__builtins__"]
    (function,) = names.values()
    return function


@pytest.mark.parametrize(
    ("family", "reduce"),
    [
        ("sum_where", sum),
        ("count_where", len),
        ("keep_where", list),
        ("first_where", lambda kept: NUMBERS.index(kept[0]) if kept else -1),
        ("every", lambda kept: len(kept) == len(NUMBERS)),
    ],
)
def test_code_on_lists_means_what_it_says(family: str, reduce: Any) -> None:
    (generator,) = [g for g in CODE if g.__name__ == family]
    for sample in samples_of(generator):
        condition = condition_of(sample.question)
        assert run_definition(sample.answer)(NUMBERS) == reduce([x for x in NUMBERS if condition(x)])


def condition_of(question: str) -> Any:
    """Read the condition from the words of a request."""
    simple = {
        "are even": lambda x: x % 2 == 0,
        "are odd": lambda x: x % 2 == 1,
        "are positive": lambda x: x > 0,
        "are negative": lambda x: x < 0,
    }
    text = question.replace(" that is ", " that are ")
    for words, condition in simple.items():
        if words in text:
            return condition
    words, bound = re.search(r"are (greater than|less than|at least|divisible by) (\d+)", text).groups()
    limit = int(bound)
    return {
        "greater than": lambda x: x > limit,
        "less than": lambda x: x < limit,
        "at least": lambda x: x >= limit,
        "divisible by": lambda x: x % limit == 0,
    }[words]


def test_equal_seeds_give_equal_documents() -> None:
    assert training_samples(50, seed=3) == training_samples(50, seed=3)
    assert training_samples(50, seed=3) != training_samples(50, seed=4)


def test_training_has_no_held_out_question_and_no_unseen_family() -> None:
    samples = training_samples(3000, seed=0)
    assert not any(is_held_out(sample.question) for sample in samples)
    unseen = {generator.__name__ for generator in (*UNSEEN_STORIES, *UNSEEN_CODE)}
    families = {sample.family for sample in samples}
    assert not families & unseen
    assert families == {generator.__name__ for generator in (*WORKED, *CODE)} - unseen


@pytest.mark.parametrize("split", EVALUATION_SPLITS)
def test_evaluation_questions_are_held_out_different_and_balanced(split: str) -> None:
    samples = evaluation_samples(split, 52, seed=1)
    assert len({sample.question for sample in samples}) == 52
    assert all(is_held_out(sample.question) for sample in samples)
    assert {sample.family for sample in samples} == {generator.__name__ for generator in EVALUATION_SPLITS[split]}


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split must be one of .*got 'poems'"):
        evaluation_samples("poems", 1, seed=0)


def test_no_document_holds_a_special_token() -> None:
    assert MASK in SPECIAL_TOKENS
    for sample in training_samples(500, seed=0):
        assert not any(token in sample.prompt + sample.completion for token in SPECIAL_TOKENS)
