"""Words that follow from the numbers before them, and from nothing else."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from vllm_pard.demo.text.arithmetic import ARITHMETIC
from vllm_pard.demo.text.code_lists import LIST_FAMILIES, UNSEEN_CODE
from vllm_pard.demo.text.code_parts import NOTES, REMARKS
from vllm_pard.demo.text.code_values import VALUE_FAMILIES
from vllm_pard.demo.text.stories import STORIES
from vllm_pard.demo.text.stories_more import MORE_STORIES, UNSEEN_STORIES
from vllm_pard.demo.text.wording import LINKS, OPENINGS, TAILS, by_last_digit, worked_answer

WORKED = (*STORIES, *MORE_STORIES, *UNSEEN_STORIES, *ARITHMETIC)
NUM_SAMPLES = 120
CODE = (*LIST_FAMILIES, *VALUE_FAMILIES, *UNSEEN_CODE)


def samples_of(generator: Any, num_samples: int = NUM_SAMPLES) -> list[Any]:
    rng = Random(1)
    return [generator(rng) for _ in range(num_samples)]


def test_choices_divide_ten_so_that_one_digit_decides() -> None:
    for choices in (OPENINGS, LINKS, TAILS, REMARKS, NOTES):
        assert 10 % len(choices) == 0
        assert len(set(choices)) == len(choices)
        assert by_last_digit(7, choices) == by_last_digit(127, choices)


def test_a_worked_answer_by_hand() -> None:
    steps = ["Tom has 13 figs.", "The bags hold 3 * 7 = 21 figs.", "Tom eats 21 / 3 = 7 figs.", "Eva eats 9 figs."]
    answer = worked_answer(None, "Tom has 13 figs.", steps, 9)
    assert answer == (
        "Let us see what we know.\n1. Tom has 13 figs.\n2. Then the bags hold 3 * 7 = 21 figs in all.\n"
        "3. Now Tom eats 21 / 3 = 7 figs in all.\n4. Next, Eva eats 9 figs.\nThe answer is 9."
    )


@pytest.mark.parametrize("generator", WORKED, ids=lambda g: g.__name__)
def test_how_a_step_begins_follows_from_the_last_number(generator: Any) -> None:
    seen = defaultdict(set)
    for sample in samples_of(generator):
        lines = sample.answer.splitlines()
        for before, line in pairwise(lines[1:-1]):
            last = int(re.findall(r"\d+", before)[-1])
            link = by_last_digit(last, LINKS)
            words = re.sub(r"^\d+\. ", "", line)
            assert words.startswith(link), (before, line)
            seen[last % 10].add(link)
    assert len(seen) > 4


@pytest.mark.parametrize("generator", WORKED, ids=lambda g: g.__name__)
def test_sentences_begin_with_one_capital(generator: Any) -> None:
    """Behind a link only names keep theirs."""
    samples = samples_of(generator)
    questions = [sample.question for sample in samples]
    for line in {line for sample in samples for line in sample.answer.splitlines()[1:-1]}:
        words = re.sub(r"^\d+\. ", "", line)
        assert words[0].isupper()
        link = next((link for link in LINKS if link and words.startswith(link)), "")
        first = words.removeprefix(link).split()[0]
        # A name is in a question.
        assert not link or first.islower() or any(first in question for question in questions), line


@pytest.mark.parametrize("generator", CODE, ids=lambda g: g.__name__)
def test_an_example_in_a_docstring_is_right(generator: Any) -> None:
    with_example = 0
    for sample in samples_of(generator):
        found = re.search(r">>> (.*)\n    (.*)\n", sample.answer)
        assert (found is None) == ("\nExample: " not in sample.question)
        if found:
            with_example += 1
            names: dict[str, Any] = {}
            exec(sample.answer, names)
            assert repr(eval(found[1], names)) == found[2]
            assert found[1].partition("(")[2].removesuffix(")") == sample.question.rpartition("Example: ")[2]
    assert with_example in (0, NUM_SAMPLES)


@pytest.mark.parametrize("generator", CODE, ids=lambda g: g.__name__)
def test_the_remark_follows_from_the_last_number_before_it(generator: Any) -> None:
    for sample in samples_of(generator):
        remark = next(line.strip() for line in sample.answer.splitlines() if line.strip() in REMARKS)
        numbers = re.findall(r"\d+", sample.answer.partition(remark)[0])
        if numbers:
            assert remark == by_last_digit(int(numbers[-1]), REMARKS)
