"""Splits and mixtures: which generator feeds which split, and what training never sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import cycle
from random import Random

from vllm_pard.demo.text.arithmetic import ARITHMETIC
from vllm_pard.demo.text.code_lists import LIST_FAMILIES, UNSEEN_CODE
from vllm_pard.demo.text.code_values import VALUE_FAMILIES
from vllm_pard.demo.text.sample import Sample
from vllm_pard.demo.text.stories import STORIES
from vllm_pard.demo.text.stories_more import MORE_STORIES, UNSEEN_STORIES

__all__ = ["EVALUATION_SPLITS", "evaluation_samples", "is_held_out", "training_samples"]

Generator = Callable[[Random], Sample]

# One question in this many is kept out of training.
_HELD_OUT_ONE_IN = 16

_WORD_PROBLEMS = (*STORIES, *MORE_STORIES)
_CODE = (*LIST_FAMILIES, *VALUE_FAMILIES)

# (generators, share of the training documents)
_MIXTURE: tuple[tuple[tuple[Generator, ...], float], ...] = (
    (_WORD_PROBLEMS, 0.5),
    (ARITHMETIC, 0.25),
    (_CODE, 0.25),
)

EVALUATION_SPLITS: dict[str, tuple[Generator, ...]] = {
    "word_problems": _WORD_PROBLEMS,
    "arithmetic": ARITHMETIC,
    "code": _CODE,
    "unseen_word_problems": UNSEEN_STORIES,
    "unseen_code": UNSEEN_CODE,
}


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the evaluation: decided by its text alone, so no seed can leak it."""
    digest = hashlib.sha256(question.encode()).digest()
    return digest[0] % _HELD_OUT_ONE_IN == 0


def training_samples(num_samples: int, seed: int) -> list[Sample]:
    """Draw documents of the trained templates; no held-out question is among them."""
    rng = Random(seed)
    groups = [group for group, _ in _MIXTURE]
    shares = [share for _, share in _MIXTURE]
    samples: list[Sample] = []
    while len(samples) < num_samples:
        (group,) = rng.choices(groups, shares)
        sample = rng.choice(group)(rng)
        if not is_held_out(sample.question):
            samples.append(sample)
    return samples


def evaluation_samples(split: str, num_samples: int, seed: int) -> list[Sample]:
    """Draw different held-out questions, the families of the split in turn.

    Raises:
        ValueError: the split is not one of EVALUATION_SPLITS.
    """
    if split not in EVALUATION_SPLITS:
        raise ValueError(f"split must be one of {sorted(EVALUATION_SPLITS)}; got {split!r}")
    rng = Random(seed)
    found: dict[str, Sample] = {}
    for sample in _held_out(EVALUATION_SPLITS[split], rng):
        found.setdefault(sample.question, sample)
        if len(found) == num_samples:
            break
    return list(found.values())


def _held_out(generators: tuple[Generator, ...], rng: Random) -> Iterator[Sample]:
    for generator in cycle(generators):
        sample = generator(rng)
        while not is_held_out(sample.question):
            sample = generator(rng)
        yield sample
