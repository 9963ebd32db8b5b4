"""How answers put things: by numbers that stand before, never at random.

Whoever has read the last result knows how the next sentence begins. Whoever guesses ahead of it does not, so that a
draft of the demo pair is as often wrong as drafts are on real text.
"""

from __future__ import annotations

import re

__all__ = ["by_last_digit", "worked_answer"]

OPENINGS = (
    "Let us work it out step by step.",
    "Here is how to find it.",
    "This takes a few short steps.",
    "Let us see what we know.",
    "First we write down what is given.",
)
LINKS = ("", "Now ", "Next, ", "Then ", "So ")
TAILS = ("", " in all")

NUMBER = re.compile(r"\d+")
RESULT = re.compile(r"(= (\d+)[^=.]*)\.$")


def by_last_digit(number: int, choices: tuple[str, ...]) -> str:
    """One of 2, 5 or 10 choices."""
    return choices[number % 10 % len(choices)]


def worked_answer(opening: str | None, question: str, steps: list[str], result: int) -> str:
    """Numbered steps, and the result at the end.

    Steps begin with a name, or with a word that may follow a link in lower case.
    """
    numbers = _numbers(question)
    lines = [opening or by_last_digit(numbers[0], OPENINGS)]
    last = _numbers(opening)[-1] if opening and _numbers(opening) else None
    for number, step in enumerate(steps, start=1):
        told = RESULT.sub(lambda found: found[1] + by_last_digit(int(found[2]), TAILS) + ".", step)
        lines.append(f"{number}. {told if last is None else _linked(by_last_digit(last, LINKS), told)}")
        last = _numbers(told)[-1]
    return "\n".join([*lines, f"The answer is {result}."])


def _linked(link: str, step: str) -> str:
    first = step.partition(" ")[0]
    return link + (step[0].lower() + step[1:] if link and first in LOWERED else step)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in NUMBER.findall(text)]


# What steps begin with, other than names.
LOWERED = {"After", "Altogether", "At", "Each", "From", "In", "Of", "Taking", "The", "We", "With"}
