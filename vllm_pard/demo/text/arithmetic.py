"""Bare sums with the steps written out."""

from __future__ import annotations

from random import Random

from vllm_pard.demo.text.sample import Sample

__all__ = ["ARITHMETIC", "addition", "division", "multiplication", "subtraction"]


def addition(rng: Random) -> Sample:
    a, b = rng.randint(11, 89), rng.randint(11, 89)
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    question = rng.choice((f"What is {a} + {b}?", f"Add {a} and {b}.", f"Work out {a} plus {b}."))
    answer = (
        f"We add the tens and the ones of {a} and {b}.\n"
        f"1. The tens give {a // 10 * 10} + {b // 10 * 10} = {tens}.\n"
        f"2. The ones give {a % 10} + {b % 10} = {ones}.\n"
        f"3. Together that is {tens} + {ones} = {a + b}.\n"
        f"The answer is {a + b}."
    )
    return Sample(question, answer, "addition")


def subtraction(rng: Random) -> Sample:
    a, b = rng.randint(31, 99), rng.randint(11, 99)
    a, b = max(a, b), min(a, b)
    tens, ones = b // 10 * 10, b % 10
    question = rng.choice((f"What is {a} - {b}?", f"Subtract {b} from {a}.", f"Work out {a} minus {b}."))
    answer = (
        f"We take the tens of {b} away first, and then the ones.\n"
        f"1. The number {b} has {tens} and {ones}.\n"
        f"2. Taking away the tens gives {a} - {tens} = {a - tens}.\n"
        f"3. Taking away the ones gives {a - tens} - {ones} = {a - b}.\n"
        f"The answer is {a - b}."
    )
    return Sample(question, answer, "subtraction")


def multiplication(rng: Random) -> Sample:
    a, b = rng.randint(2, 9), rng.randint(11, 39)
    tens, ones = b // 10 * 10, b % 10
    question = rng.choice((f"What is {a} * {b}?", f"Multiply {a} by {b}.", f"Work out {a} times {b}."))
    answer = (
        f"We multiply the tens and the ones of {b} by {a}.\n"
        f"1. The tens give {a} * {tens} = {a * tens}.\n"
        f"2. The ones give {a} * {ones} = {a * ones}.\n"
        f"3. Together that is {a * tens} + {a * ones} = {a * b}.\n"
        f"The answer is {a * b}."
    )
    return Sample(question, answer, "multiplication")


def division(rng: Random) -> Sample:
    divisor, quotient = rng.randint(2, 12), rng.randint(2, 12)
    total = divisor * quotient
    question = rng.choice(
        (f"What is {total} / {divisor}?", f"Divide {total} by {divisor}.", f"How often does {divisor} go into {total}?")
    )
    answer = (
        f"We look for the number that gives {total} when it is multiplied by {divisor}.\n"
        f"1. We know that {divisor} * {quotient} = {total}.\n"
        f"2. So {total} / {divisor} = {quotient}.\n"
        f"The answer is {quotient}."
    )
    return Sample(question, answer, "division")


ARITHMETIC = (addition, subtraction, multiplication, division)
