"""Word lists of the generators."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["FRUITS", "PLACES", "THINGS", "Person", "pick_people", "pick_person"]


@dataclass(frozen=True)
class Person:
    """A name with its pronouns."""

    name: str
    they: str
    their: str

    @property
    def They(self) -> str:
        return self.they.capitalize()


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_SHE = _words(
    "Anna Mia Sara Lena Nora Ella Ruth Clara Zoe Ivy Maya Lucy Rosa Hana Julia Alice Emma Grace Sofia Amina Priya "
    "Yuki Helen Laura Marta Olga Paula Nina Diana Eva"
)
_HE = _words(
    "Tom Ben Max Leo Sam Paul Omar Jack Luis Noah Finn Adam Kenji Ravi Peter Hugo Oscar David Felix Simon Victor "
    "Walter Ivan Carlos Daniel Ethan George Henry Jonas Marco"
)

_PEOPLE = tuple(
    [Person(name, "she", "her") for name in _SHE] + [Person(name, "he", "his") for name in _HE],
)

THINGS = _words(
    "marbles stickers pencils books cards coins stamps shells buttons beads balloons crayons "
    "cookies candles flowers postcards badges stones magnets ribbons feathers bottles puzzles erasers markers "
    "keychains figures notebooks blocks tickets"
)
FRUITS = _words(
    "apples oranges pears lemons peaches plums mangoes melons bananas cherries grapes figs apricots papayas"
)
PLACES = _words(
    "school library museum market station theater farm garden bakery zoo castle harbor stadium gallery airport"
)


def pick_person(rng: Random) -> Person:
    return rng.choice(_PEOPLE)


def pick_people(rng: Random) -> tuple[Person, Person]:
    """Two persons with different names."""
    first, second = rng.sample(_PEOPLE, 2)
    return first, second
