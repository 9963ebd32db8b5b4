"""Small documented Python functions on single values, texts and dictionaries."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from vllm_pard.demo.text.code_parts import function_sample
from vllm_pard.demo.text.sample import Sample

__all__ = ["VALUE_FAMILIES"]

_TEXTS = ("text", "word", "line", "name", "title", "sentence")
_KEYED = (("prices", "product"), ("scores", "player"), ("ages", "person"), ("stock", "item"), ("votes", "city"))
_MEASURES = (
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
    ("meters", "centimeters", 100),
    ("dollars", "cents", 100),
    ("dozens", "pieces", 12),
)


def count_letter(rng: Random) -> Sample:
    text, letter = rng.choice(_TEXTS), rng.choice(ascii_lowercase)
    body = [
        "found = 0",
        f"for letter in {text}:",
        f'    if letter == "{letter}":',
        "        found = found + 1",
        "return found",
    ]
    return function_sample(
        rng,
        signature=f"count_{letter}({text})",
        summary=f'count how often the letter "{letter}" is in the {text}',
        arguments={text: f"the {text} to look at"},
        body=body,
        family="count_letter",
    )


def remove_letter(rng: Random) -> Sample:
    text, letter = rng.choice(_TEXTS), rng.choice(ascii_lowercase)
    body = [
        'result = ""',
        f"for letter in {text}:",
        f'    if letter != "{letter}":',
        "        result = result + letter",
        "return result",
    ]
    return function_sample(
        rng,
        signature=f"remove_{letter}({text})",
        summary=f'return the {text} without the letter "{letter}"',
        arguments={text: f"the {text} to change"},
        body=body,
        family="remove_letter",
    )


def long_words(rng: Random) -> Sample:
    text, length = rng.choice(_TEXTS), rng.randint(2, 20)
    name, words, sign = rng.choice((("longer", "more", ">"), ("shorter", "fewer", "<")))
    body = [
        "kept = []",
        f"for part in {text}.split():",
        f"    if len(part) {sign} {length}:",
        "        kept.append(part)",
        "return kept",
    ]
    return function_sample(
        rng,
        signature=f"{name}_than_{length}({text})",
        summary=f"return the parts of the {text} that have {words} than {length} letters",
        arguments={text: f"the {text} to split"},
        body=body,
        family="long_words",
    )


def keys_by_value(rng: Random) -> Sample:
    (table, key), bound = rng.choice(_KEYED), rng.randint(2, 99)
    name, words, sign = rng.choice((("above", "more than", ">"), ("below", "less than", "<")))
    body = [
        "names = []",
        f"for {key}, value in {table}.items():",
        f"    if value {sign} {bound}:",
        f"        names.append({key})",
        "return names",
    ]
    return function_sample(
        rng,
        signature=f"{key}_{name}_{bound}({table})",
        summary=f"return each {key} whose value in {table} is {words} {bound}",
        arguments={table: f"a dictionary with one value for each {key}"},
        body=body,
        family="keys_by_value",
    )


def convert(rng: Random) -> Sample:
    large, small, factor = rng.choice(_MEASURES)
    extra = rng.randint(2, 60)
    body = [
        f"{small} = {large} * {factor}",
        f"{small} = {small} + {extra}",
        f"return {small}",
    ]
    return function_sample(
        rng,
        signature=f"{large}_to_{small}_plus_{extra}({large})",
        summary=f"turn {large} into {small} and add {extra} {small}",
        arguments={large: f"the number of {large}"},
        body=body,
        example=rng.randint(2, 9),
        family="convert",
    )


def limit(rng: Random) -> Sample:
    value = rng.choice(("value", "speed", "price", "score", "level", "volume", "size", "rate"))
    low = rng.randint(1, 40)
    high = low + rng.randint(5, 50)
    body = [
        f"if {value} < {low}:",
        f"    return {low}",
        f"if {value} > {high}:",
        f"    return {high}",
        f"return {value}",
    ]
    return function_sample(
        rng,
        signature=f"limit_{value}({value})",
        summary=f"keep the {value} between {low} and {high}",
        arguments={value: f"the {value} to limit"},
        body=body,
        example=rng.randint(1, 90),
        family="limit",
    )


def grade(rng: Random) -> Sample:
    value = rng.choice(("score", "points", "result", "mark", "level", "rating"))
    low = rng.randint(10, 60)
    high = low + rng.randint(5, 35)
    best, middle, worst = rng.choice(
        (("high", "medium", "low"), ("gold", "silver", "bronze"), ("good", "fair", "poor"), ("hot", "warm", "cold"))
    )
    body = [
        f"if {value} >= {high}:",
        f'    return "{best}"',
        f"if {value} >= {low}:",
        f'    return "{middle}"',
        f'return "{worst}"',
    ]
    return function_sample(
        rng,
        signature=f"grade_{value}({value})",
        summary=f'return "{best}" from {high} on, "{middle}" from {low} on, and "{worst}" below that',
        arguments={value: f"the {value} to grade"},
        body=body,
        example=rng.randint(1, 99),
        family="grade",
    )


VALUE_FAMILIES = (count_letter, remove_letter, long_words, keys_by_value, convert, limit, grade)
