"""What prompts take in steps that decode too: so much for each token, and so much for there being any.

Decodes alone may have a CUDA graph of their own, which a prompt keeps a step from. Both are found from steps of one
kind that follow each other and read unequal numbers of tokens; each is a median, since anything may delay a step.
"""

from collections import deque
from collections.abc import Collection
from itertools import accumulate
from statistics import median
from typing import NamedTuple

__all__ = ["PromptCost", "Step"]

NUM_PAIRS = 100  # of steps, the newest


class Step(NamedTuple):
    """One step of an engine."""

    seconds: float
    num_prompt_tokens: int


class PromptCost:
    """Seconds that prompts take, for steps of every kind."""

    def __init__(self, least: int) -> None:
        """Fewer pairs than `least` say nothing."""
        self._per_token = self._per_step = 0.0
        self._slopes: deque[tuple[float, int]] = deque(maxlen=NUM_PAIRS)  # seconds a token, and the pair's weight
        self._jumps: deque[Step] = deque(maxlen=NUM_PAIRS)  # how a step with prompts differs from one without
        self._least = least

    @property
    def estimates(self) -> tuple[float, float]:
        """Seconds for there being a prompt, and for each token of it."""
        return self._per_step, self._per_token

    def of(self, step: Step) -> float:
        """Seconds of a step that its prompts took."""
        return self._per_step + self._per_token * step.num_prompt_tokens if step.num_prompt_tokens else 0.0

    def observe(self, before: Step, step: Step) -> None:
        """Take note of two steps of a kind."""
        less, more = sorted((before, step), key=lambda step: step.num_prompt_tokens)
        longer = Step(more.seconds - less.seconds, more.num_prompt_tokens - less.num_prompt_tokens)
        if longer.num_prompt_tokens == 0:
            return
        if less.num_prompt_tokens:
            self._slopes.append((longer.seconds / longer.num_prompt_tokens, longer.num_prompt_tokens))
        else:
            self._jumps.append(longer)
        if len(self._slopes) >= self._least:
            self._per_token = max(0.0, _weighted_median(self._slopes))
        if len(self._jumps) >= self._least:
            rests = (jump.seconds - self._per_token * jump.num_prompt_tokens for jump in self._jumps)
            self._per_step = max(0.0, median(rests))


def _weighted_median(values: Collection[tuple[float, int]]) -> float:
    ascending = sorted(values)
    weights = list(accumulate(weight for _, weight in ascending))
    return next(value for (value, _), weight in zip(ascending, weights, strict=True) if weight >= weights[-1] / 2)
