"""Small documented Python functions on lists. The last family is never trained on."""

from __future__ import annotations

from random import Random

from vllm_pard.demo.text.code_parts import LISTS, few_numbers, function_sample, pick_condition
from vllm_pard.demo.text.sample import Sample

__all__ = ["LIST_FAMILIES", "UNSEEN_CODE"]


def sum_where(rng: Random) -> Sample:
    (items, item), condition = rng.choice(LISTS), pick_condition(rng)
    body = [
        "total = 0",
        f"for {item} in {items}:",
        f"    if {condition.on(item)}:",
        f"        total = total + {item}",
        "return total",
    ]
    return function_sample(
        rng,
        signature=f"sum_{condition.name}({items})",
        summary=f"return the sum of all {items} that are {condition.words}",
        arguments={items: f"the list of {items} to add"},
        body=body,
        family="sum_where",
    )


def count_where(rng: Random) -> Sample:
    (items, item), condition = rng.choice(LISTS), pick_condition(rng)
    body = [
        "found = 0",
        f"for {item} in {items}:",
        f"    if {condition.on(item)}:",
        "        found = found + 1",
        "return found",
    ]
    return function_sample(
        rng,
        signature=f"count_{condition.name}({items})",
        summary=f"count how many {items} are {condition.words}",
        arguments={items: f"the list of {items} to look at"},
        body=body,
        example=few_numbers(rng),
        family="count_where",
    )


def keep_where(rng: Random) -> Sample:
    (items, item), condition = rng.choice(LISTS), pick_condition(rng)
    body = [
        "kept = []",
        f"for {item} in {items}:",
        f"    if {condition.on(item)}:",
        f"        kept.append({item})",
        "return kept",
    ]
    return function_sample(
        rng,
        signature=f"keep_{condition.name}({items})",
        summary=f"return a list of the {items} that are {condition.words}",
        arguments={items: f"the list of {items} to filter"},
        body=body,
        example=few_numbers(rng),
        family="keep_where",
    )


def first_where(rng: Random) -> Sample:
    (items, item), condition = rng.choice(LISTS), pick_condition(rng)
    body = [
        f"for index, {item} in enumerate({items}):",
        f"    if {condition.on(item)}:",
        "        return index",
        "return -1",
    ]
    return function_sample(
        rng,
        signature=f"first_{condition.name}({items})",
        summary=f"return the index of the first {item} that is {condition.words}, or -1 if there is none",
        arguments={items: f"the list of {items} to search"},
        body=body,
        example=few_numbers(rng),
        family="first_where",
    )


def change_all(rng: Random) -> Sample:
    items, item = rng.choice(LISTS)
    amount = rng.randint(2, 60)
    name, words, expression = rng.choice(
        (
            (f"add_{amount}", f"{amount} added to each {item}", f"{item} + {amount}"),
            (f"subtract_{amount}", f"{amount} taken from each {item}", f"{item} - {amount}"),
            (f"scale_by_{amount}", f"each {item} multiplied by {amount}", f"{item} * {amount}"),
            ("square", f"each {item} squared", f"{item} * {item}"),
            ("double", f"each {item} doubled", f"2 * {item}"),
        )
    )
    body = [
        "result = []",
        f"for {item} in {items}:",
        f"    result.append({expression})",
        "return result",
    ]
    return function_sample(
        rng,
        signature=f"{name}_{items}({items})",
        summary=f"return a new list with {words}",
        arguments={items: f"the list of {items} to change"},
        body=body,
        example=few_numbers(rng, 9),
        family="change_all",
    )


def extreme(rng: Random) -> Sample:
    (items, item), condition = rng.choice(LISTS), pick_condition(rng)
    word, sign = rng.choice((("largest", ">"), ("smallest", "<")))
    body = [
        "best = None",
        f"for {item} in {items}:",
        f"    if {condition.on(item)} and (best is None or {item} {sign} best):",
        f"        best = {item}",
        "return best",
    ]
    return function_sample(
        rng,
        signature=f"{word}_{condition.name}({items})",
        summary=f"return the {word} of the {items} that are {condition.words}, or None if there is none",
        arguments={items: f"the list of {items} to compare"},
        body=body,
        example=few_numbers(rng),
        family="extreme",
    )


def every(rng: Random) -> Sample:
    """Never trained on."""
    (items, item), condition = rng.choice(LISTS), pick_condition(rng)
    body = [
        f"for {item} in {items}:",
        f"    if not ({condition.on(item)}):",
        "        return False",
        "return True",
    ]
    return function_sample(
        rng,
        signature=f"every_{condition.name}({items})",
        summary=f"check that all {items} are {condition.words}",
        arguments={items: f"the list of {items} to check"},
        body=body,
        family="every",
    )


LIST_FAMILIES = (sum_where, count_where, keep_where, first_where, change_all, extreme)
UNSEEN_CODE = (every,)
