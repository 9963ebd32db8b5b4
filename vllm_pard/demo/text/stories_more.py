"""More word problems: times, groups and comparisons. The last two are never trained on."""

from __future__ import annotations

from random import Random

from vllm_pard.demo.text.names import FRUITS, PLACES, THINGS, pick_people, pick_person
from vllm_pard.demo.text.sample import Sample
from vllm_pard.demo.text.stories import worked

__all__ = ["MORE_STORIES", "UNSEEN_STORIES"]


def twice_as_many(rng: Random) -> Sample:
    (first, second), thing = pick_people(rng), rng.choice(THINGS)
    count, times = rng.randint(3, 20), rng.randint(2, 4)
    other = count * times
    question = rng.choice(
        (
            f"{first.name} has {count} {thing}. {second.name} has {times} times as many. "
            f"How many {thing} do they have together?",
            f"{second.name} collects {times} times as many {thing} as {first.name}, who has {count} {thing}. "
            f"How many {thing} is that for both?",
        )
    )
    steps = [
        f"{first.name} has {count} {thing}.",
        f"{second.name} has {times} * {count} = {other} {thing}.",
        f"Altogether there are {count} + {other} = {count + other} {thing}.",
    ]
    return worked(question, steps, count + other, "twice_as_many")


def rows_of_seats(rng: Random) -> Sample:
    place = rng.choice(PLACES)
    num_rows, seats = rng.randint(3, 12), rng.randint(3, 9)
    total = num_rows * seats
    taken = rng.randint(2, total - 1)
    question = rng.choice(
        (
            f"The {place} has {num_rows} rows with {seats} seats each. {taken} seats are taken. "
            f"How many seats are free?",
            f"There are {num_rows} rows of {seats} seats at the {place}, and {taken} people sit down. "
            f"How many seats stay empty?",
        )
    )
    steps = [
        f"The {place} has {num_rows} * {seats} = {total} seats.",
        f"Of these seats, {taken} are taken.",
        f"In the end {total} - {taken} = {total - taken} seats are free.",
    ]
    return worked(question, steps, total - taken, "rows_of_seats")


def reading(rng: Random) -> Sample:
    person = pick_person(rng)
    per_day, days, rest = rng.randint(4, 12), rng.randint(3, 9), rng.randint(5, 40)
    read = per_day * days
    pages = read + rest
    question = rng.choice(
        (
            f"A book has {pages} pages. {person.name} reads {per_day} pages a day for {days} days. "
            f"How many pages are left?",
            f"{person.name} reads {per_day} pages every day. After {days} days, how many of the {pages} pages of the "
            f"book are still to read?",
        )
    )
    steps = [
        f"The book has {pages} pages.",
        f"In {days} days {person.name} reads {days} * {per_day} = {read} pages.",
        f"In the end {pages} - {read} = {rest} pages are left.",
    ]
    return worked(question, steps, rest, "reading")


def bakery(rng: Random) -> Sample:
    person, fruit = pick_person(rng), rng.choice(FRUITS)
    trays, per_tray, price = rng.randint(2, 5), rng.randint(2, 6), rng.randint(2, 5)
    pies = trays * per_tray
    question = rng.choice(
        (
            f"{person.name} bakes {trays} trays with {per_tray} pies each and puts {fruit} in all of them. "
            f"Each pie sells for {price} dollars. How many dollars does {person.name} earn?",
            f"With a basket of {fruit}, {person.name} fills {per_tray} pies on each of {trays} trays. How much money "
            f"is that when a pie costs {price} dollars?",
        )
    )
    steps = [
        f"{person.name} bakes {trays} * {per_tray} = {pies} pies with {fruit}.",
        f"Each of the {pies} pies sells for {price} dollars.",
        f"{person.name} earns {pies} * {price} = {pies * price} dollars.",
    ]
    return worked(question, steps, pies * price, "bakery")


def bus(rng: Random) -> Sample:
    first, second = rng.sample(PLACES, 2)
    start, off, on = rng.randint(15, 50), rng.randint(2, 14), rng.randint(2, 25)
    after = start - off
    question = rng.choice(
        (
            f"A bus leaves the {first} with {start} people. At the {second}, {off} people get off and {on} people get "
            f"on. How many people are on the bus now?",
            f"{start} people ride the bus from the {first} to the {second}, where {off} leave and {on} join. "
            f"How many people ride on?",
        )
    )
    steps = [
        f"The bus leaves the {first} with {start} people.",
        f"At the {second} {off} people get off, so {start} - {off} = {after} people stay.",
        f"With {on} people who get on, {after} + {on} = {after + on} people are on the bus.",
    ]
    return worked(question, steps, after + on, "bus")


def difference(rng: Random) -> Sample:
    (first, second), fruit = pick_people(rng), rng.choice(FRUITS)
    baskets, per_basket = rng.randint(3, 9), rng.randint(3, 9)
    more = baskets * per_basket
    less = rng.randint(2, more - 1)
    question = rng.choice(
        (
            f"{first.name} picks {baskets} baskets of {per_basket} {fruit}. {second.name} picks {less} {fruit}. "
            f"How many more {fruit} does {first.name} pick than {second.name}?",
            f"{second.name} has {less} {fruit}, while {first.name} has {baskets} baskets with {per_basket} {fruit} in "
            f"each. How many {fruit} does {first.name} have more?",
        )
    )
    steps = [
        f"{first.name} picks {baskets} * {per_basket} = {more} {fruit}.",
        f"{second.name} picks {less} {fruit}.",
        f"The difference is {more} - {less} = {more - less} {fruit}.",
    ]
    return worked(question, steps, more - less, "difference")


def tank(rng: Random) -> Sample:
    """Never trained on."""
    person, place = pick_person(rng), rng.choice(PLACES)
    start, rate, minutes = rng.randint(5, 40), rng.randint(2, 9), rng.randint(2, 9)
    added = rate * minutes
    question = (
        f"A tank behind the {place} holds {start} buckets of water. {person.name} adds {rate} buckets a minute for "
        f"{minutes} minutes. How many buckets of water does the tank hold then?"
    )
    steps = [
        f"The tank starts with {start} buckets.",
        f"In {minutes} minutes {person.name} adds {minutes} * {rate} = {added} buckets.",
        f"Altogether there are {start} + {added} = {start + added} buckets.",
    ]
    return worked(question, steps, start + added, "tank")


def broken(rng: Random) -> Sample:
    """Never trained on."""
    person, thing = pick_person(rng), rng.choice(THINGS)
    boxes, per_box = rng.randint(2, 9), rng.randint(3, 9)
    total = boxes * per_box
    lost = rng.randint(2, total - 1)
    question = (
        f"{person.name} orders {boxes} boxes of {per_box} {thing}, but {lost} {thing} arrive broken. "
        f"How many {thing} are whole?"
    )
    steps = [
        f"The boxes hold {boxes} * {per_box} = {total} {thing}.",
        f"Of these {thing}, {lost} are broken.",
        f"In the end {total} - {lost} = {total - lost} {thing} are whole.",
    ]
    return worked(question, steps, total - lost, "broken")


MORE_STORIES = (twice_as_many, rows_of_seats, reading, bakery, bus, difference)
UNSEEN_STORIES = (tank, broken)
