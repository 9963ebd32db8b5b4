"""What the code families share: lists to work on, conditions, and the layout of a documented function."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from vllm_pard.demo.text.sample import Sample
from vllm_pard.demo.text.wording import by_last_digit

__all__ = ["LISTS", "Condition", "few_numbers", "function_sample", "pick_condition"]

# (the list, one item of it)
LISTS = (
    ("numbers", "number"),
    ("values", "value"),
    ("scores", "score"),
    ("prices", "price"),
    ("ages", "age"),
    ("weights", "weight"),
    ("points", "point"),
    ("counts", "count"),
)


# By the last digit of the last number that stands before.
REMARKS = (
    "It is called once for each request.",
    "Nothing is changed in place.",
    "It takes time in proportion to the input.",
    "Callers check the input before.",
    "The order stays as it is.",
    "It has no side effects.",
    "An empty input is fine.",
    "It is used by the weekly report.",
    "Errors are left to the caller.",
    "See the notes for more on this.",
)
# By its last digit but one.
NOTES = ("", ", never None", ", as the caller has it", ", read only", ", which may be empty")


@dataclass(frozen=True)
class Condition:
    """A test on one item: in words, as part of a name, and as an expression with a `{x}` slot."""

    words: str
    name: str
    expression: str

    def on(self, item: str) -> str:
        return self.expression.format(x=item)


def pick_condition(rng: Random) -> Condition:
    bound = rng.randint(2, 60)
    divisor = rng.randint(3, 12)
    return rng.choice(
        (
            Condition("even", "even", "{x} % 2 == 0"),
            Condition("odd", "odd", "{x} % 2 == 1"),
            Condition("positive", "positive", "{x} > 0"),
            Condition("negative", "negative", "{x} < 0"),
            Condition(f"greater than {bound}", f"above_{bound}", f"{{x}} > {bound}"),
            Condition(f"less than {bound}", f"below_{bound}", f"{{x}} < {bound}"),
            Condition(f"at least {bound}", f"from_{bound}", f"{{x}} >= {bound}"),
            Condition(f"divisible by {divisor}", f"divisible_by_{divisor}", f"{{x}} % {divisor} == 0"),
        )
    )


def few_numbers(rng: Random, largest: int = 60) -> list[int]:
    return [rng.randint(1, largest) for _ in range(3)]


def function_sample(
    rng: Random,
    *,
    signature: str,
    summary: str,
    arguments: dict[str, str],
    body: list[str],
    family: str,
    example: Any = None,
) -> Sample:
    """A request in one of three wordings, and the documented function that answers it.

    `summary` is a verb phrase without its final period ("return the sum of ..."); `body` has no indentation of
    its own level. An `example` is an argument: the request gives it, and the docstring has what comes out.
    """
    request = rng.choice(
        (
            f"Write a Python function {signature} to {summary}.",
            f"Complete the function.\ndef {signature}:\n    # {summary}",
            f"I need a function {signature} in Python. It should {summary}.",
        )
    )
    key = _key(f"{signature} {summary}")
    lines = [f"def {signature}:", f'    """{summary[0].upper()}{summary[1:]}.', ""]
    if example is not None:
        result = _run(signature, body, example)
        request += f"\nExample: {example!r}"
        key = _key(f"{example} {result}")
        lines += [f"    >>> {signature.partition('(')[0]}({example!r})", f"    {result!r}", ""]
    remark, note = by_last_digit(key, REMARKS), by_last_digit(key // 10, NOTES)
    lines += [
        f"    {remark}",
        "",
        "    Args:",
        *(f"        {name}: {text}{note}." for name, text in arguments.items()),
        '    """',
        *(f"    {line}" for line in body),
    ]
    return Sample(request, "\n".join(lines), family)


def _key(text: str) -> int:
    """The last number of a text, and its length where it has none: two digits to choose words by."""
    numbers: Sequence[str] = re.findall(r"\d+", text)
    return int(numbers[-1]) if numbers else len(text)


def _run(signature: str, body: list[str], argument: Any) -> Any:
    """What the function gives."""
    names: dict[str, Any] = {}
    exec("\n    ".join([f"def {signature}:", *body]), names)
    return names[signature.partition("(")[0]](argument)
