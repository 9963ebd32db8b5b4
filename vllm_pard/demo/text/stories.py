"""Grade-school word problems about one person, worked out step by step."""

from __future__ import annotations

from random import Random

from vllm_pard.demo.text.names import FRUITS, PLACES, THINGS, pick_people, pick_person
from vllm_pard.demo.text.sample import Sample
from vllm_pard.demo.text.wording import worked_answer

__all__ = ["STORIES", "worked"]


def worked(question: str, steps: list[str], result: int, family: str) -> Sample:
    """A sample whose answer numbers its steps and ends with the result."""
    return Sample(question, worked_answer(None, question, steps, result), family)


def bags(rng: Random) -> Sample:
    person, thing = pick_person(rng), rng.choice(THINGS + FRUITS)
    start, num_bags, per_bag = rng.randint(3, 40), rng.randint(2, 9), rng.randint(2, 9)
    bought = num_bags * per_bag
    question = rng.choice(
        (
            f"{person.name} has {start} {thing}. {person.They} buys {num_bags} bags with {per_bag} {thing} in each "
            f"bag. How many {thing} does {person.name} have now?",
            f"{person.name} owned {start} {thing} and then bought {num_bags} bags of {per_bag} {thing} each. "
            f"How many {thing} are there in total?",
        )
    )
    steps = [
        f"{person.name} starts with {start} {thing}.",
        f"The {num_bags} bags hold {num_bags} * {per_bag} = {bought} {thing}.",
        f"Altogether there are {start} + {bought} = {start + bought} {thing}.",
    ]
    return worked(question, steps, start + bought, "bags")


def give_and_get(rng: Random) -> Sample:
    (giver, taker), thing = pick_people(rng), rng.choice(THINGS)
    start, given, found = rng.randint(20, 60), rng.randint(3, 19), rng.randint(3, 30)
    left = start - given
    question = rng.choice(
        (
            f"{giver.name} has {start} {thing}. {giver.They} gives {given} {thing} to {taker.name} and then finds "
            f"{found} more. How many {thing} does {giver.name} have at the end?",
            f"There are {start} {thing} in the box of {giver.name}. {taker.name} gets {given} of them. "
            f"Later {giver.name} adds {found} new {thing}. How many {thing} are in the box?",
        )
    )
    steps = [
        f"{giver.name} starts with {start} {thing}.",
        f"After {taker.name} gets {given} {thing}, there are {start} - {given} = {left} {thing} left.",
        f"With {found} more {thing}, there are {left} + {found} = {left + found} {thing}.",
    ]
    return worked(question, steps, left + found, "give_and_get")


def shopping(rng: Random) -> Sample:
    person, (fruit, other) = pick_person(rng), rng.sample(FRUITS, 2)
    count, price, extra_count, extra_price = (rng.randint(2, 9) for _ in range(4))
    first, second = count * price, extra_count * extra_price
    question = rng.choice(
        (
            f"{person.name} buys {count} {fruit} for {price} dollars each and {extra_count} {other} for {extra_price} "
            f"dollars each. How much does {person.name} pay?",
            f"At the market {person.name} takes {count} {fruit} and {extra_count} {other}. The {fruit} cost {price} "
            f"dollars each and the {other} cost {extra_price} dollars each. What is the total price?",
        )
    )
    steps = [
        f"The {fruit} cost {count} * {price} = {first} dollars.",
        f"The {other} cost {extra_count} * {extra_price} = {second} dollars.",
        f"In total {person.name} pays {first} + {second} = {first + second} dollars.",
    ]
    return worked(question, steps, first + second, "shopping")


def change(rng: Random) -> Sample:
    person, thing = pick_person(rng), rng.choice(THINGS)
    count, price = rng.randint(2, 9), rng.randint(2, 9)
    cost = count * price
    money = cost + rng.randint(3, 30)
    question = rng.choice(
        (
            f"{person.name} has {money} dollars and buys {count} {thing} for {price} dollars each. "
            f"How much money is left?",
            f"{person.name} pays for {count} {thing} with {money} dollars. One of the {thing} costs {price} dollars. "
            f"How many dollars does {person.name} get back?",
        )
    )
    steps = [
        f"{person.name} has {money} dollars.",
        f"The {thing} cost {count} * {price} = {cost} dollars.",
        f"After paying, {person.name} has {money} - {cost} = {money - cost} dollars left.",
    ]
    return worked(question, steps, money - cost, "change")


def sharing(rng: Random) -> Sample:
    person, thing = pick_person(rng), rng.choice(THINGS + FRUITS)
    friends, each, eaten = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 12)
    shared = friends * each
    start = shared + eaten
    question = rng.choice(
        (
            f"{person.name} has {start} {thing}. {person.They} keeps {eaten} {thing} and shares the rest equally among "
            f"{friends} friends. How many {thing} does each friend get?",
            f"Out of {start} {thing}, {person.name} keeps {eaten}. The other {thing} go to {friends} friends in equal "
            f"parts. How many {thing} are there for each friend?",
        )
    )
    steps = [
        f"{person.name} starts with {start} {thing} and keeps {eaten} {thing}.",
        f"The friends get {start} - {eaten} = {shared} {thing}.",
        f"Each of the {friends} friends gets {shared} / {friends} = {each} {thing}.",
    ]
    return worked(question, steps, each, "sharing")


def trip(rng: Random) -> Sample:
    person, (first, second) = pick_person(rng), rng.sample(PLACES, 2)
    speed, hours, rest = rng.randint(3, 12), rng.randint(2, 7), rng.randint(4, 40)
    part = speed * hours
    question = rng.choice(
        (
            f"{person.name} rides {hours} hours at {speed} miles per hour from the {first} to the {second}. "
            f"Then {person.they} walks {rest} more miles. How many miles is the whole way?",
            f"From the {first} to the {second} {person.name} needs {hours} hours at {speed} miles per hour, and after "
            f"that there are {rest} miles to go. How long is the way in miles?",
        )
    )
    steps = [
        f"From the {first} to the {second}, {person.name} covers {hours} * {speed} = {part} miles.",
        f"After the {second} there are {rest} more miles.",
        f"The whole way is {part} + {rest} = {part + rest} miles.",
    ]
    return worked(question, steps, part + rest, "trip")


def savings(rng: Random) -> Sample:
    person, thing = pick_person(rng), rng.choice(THINGS)
    start, weekly, weeks, spent = rng.randint(10, 40), rng.randint(2, 9), rng.randint(2, 9), rng.randint(3, 10)
    saved = weekly * weeks
    question = rng.choice(
        (
            f"{person.name} has {start} dollars and saves {weekly} dollars a week for {weeks} weeks. Then "
            f"{person.they} spends {spent} dollars on {thing}. How many dollars does {person.name} have?",
            f"Each week {person.name} puts {weekly} dollars into a box that already holds {start} dollars. After "
            f"{weeks} weeks {person.they} takes {spent} dollars out for {thing}. How many dollars are in the box?",
        )
    )
    steps = [
        f"In {weeks} weeks {person.name} saves {weeks} * {weekly} = {saved} dollars.",
        f"With the first {start} dollars that makes {start} + {saved} = {start + saved} dollars.",
        f"After spending {spent} dollars on {thing}, there are {start + saved} - {spent} = {start + saved - spent} "
        f"dollars left.",
    ]
    return worked(question, steps, start + saved - spent, "savings")


STORIES = (bags, give_and_get, shopping, change, sharing, trip, savings)
