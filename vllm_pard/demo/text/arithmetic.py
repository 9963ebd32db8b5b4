"""Bare sums with the steps written out."""

from __future__ import annotations

from random import Random

from vllm_pard.demo.text.sample import Sample
from vllm_pard.demo.text.wording import worked_answer

__all__ = ["ARITHMETIC", "addition", "division", "multiplication", "subtraction"]


def addition(rng: Random) -> Sample:
    a, b = rng.randint(11, 89), rng.randint(11, 89)
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    question = rng.choice((f"What is {a} + {b}?", f"Add {a} and {b}.", f"Work out {a} plus {b}."))
    opening = f"We add the tens and the ones of {a} and {b}."
    steps = [
        f"The tens give {a // 10 * 10} + {b // 10 * 10} = {tens}.",
        f"The ones give {a % 10} + {b % 10} = {ones}.",
        f"Altogether we get {tens} + {ones} = {a + b}.",
    ]
    return Sample(question, worked_answer(opening, question, steps, a + b), "addition")


def subtraction(rng: Random) -> Sample:
    a, b = rng.randint(31, 99), rng.randint(11, 99)
    a, b = max(a, b), min(a, b)
    tens, ones = b // 10 * 10, b % 10
    question = rng.choice((f"What is {a} - {b}?", f"Subtract {b} from {a}.", f"Work out {a} minus {b}."))
    opening = f"We take the tens of {b} away first, and then the ones."
    steps = [
        f"The number {b} has {tens} and {ones}.",
        f"Taking away the tens gives {a} - {tens} = {a - tens}.",
        f"Taking away the ones gives {a - tens} - {ones} = {a - b}.",
    ]
    return Sample(question, worked_answer(opening, question, steps, a - b), "subtraction")


def multiplication(rng: Random) -> Sample:
    a, b = rng.randint(2, 9), rng.randint(11, 39)
    tens, ones = b // 10 * 10, b % 10
    question = rng.choice((f"What is {a} * {b}?", f"Multiply {a} by {b}.", f"Work out {a} times {b}."))
    opening = f"We multiply the tens and the ones of {b} by {a}."
    steps = [
        f"The tens give {a} * {tens} = {a * tens}.",
        f"The ones give {a} * {ones} = {a * ones}.",
        f"Altogether we get {a * tens} + {a * ones} = {a * b}.",
    ]
    return Sample(question, worked_answer(opening, question, steps, a * b), "multiplication")


def division(rng: Random) -> Sample:
    divisor, quotient = rng.randint(2, 12), rng.randint(2, 12)
    total = divisor * quotient
    question = rng.choice(
        (f"What is {total} / {divisor}?", f"Divide {total} by {divisor}.", f"How often does {divisor} go into {total}?")
    )
    opening = f"We look for the number that gives {total} when it is multiplied by {divisor}."
    steps = [
        f"We know that {divisor} * {quotient} = {total}.",
        f"In the end {total} / {divisor} = {quotient}.",
    ]
    return Sample(question, worked_answer(opening, question, steps, quotient), "division")


ARITHMETIC = (addition, subtraction, multiplication, division)
