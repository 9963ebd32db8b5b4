"""What the code families share: lists to work on, conditions, and the layout of a documented function."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from vllm_pard.demo.text.sample import Sample

__all__ = ["LISTS", "Condition", "function_sample", "pick_condition"]

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


def function_sample(
    rng: Random, *, signature: str, summary: str, arguments: dict[str, str], body: list[str], family: str
) -> Sample:
    """A request in one of three wordings, and the documented function that answers it.

    `summary` is a verb phrase without its final period ("return the sum of ..."); `body` has no indentation of
    its own level.
    """
    request = rng.choice(
        (
            f"Write a Python function {signature} to {summary}.",
            f"Complete the function.\ndef {signature}:\n    # {summary}",
            f"I need a function {signature} in Python. It should {summary}.",
        )
    )
    lines = [
        f"def {signature}:",
        f'    """{summary[0].upper()}{summary[1:]}.',
        "",
        "    Args:",
        *(f"        {name}: {text}." for name, text in arguments.items()),
        '    """',
        *(f"    {line}" for line in body),
    ]
    return Sample(request, "\n".join(lines), family)
