"""How many tokens to draft, chosen while a server runs: as many as give the most tokens a second, or none.

A step with k drafts takes c(k) and yields L(k) = 1 + a_1 + ... + a_k tokens of a request, a_i being the share of drafts
whose token i is accepted. Costs are those of this batch size on this machine, acceptance is that of the newest drafts;
both are taken from steps that were made anyway. What can't be seen from the present choice, the acceptance of tokens
that are not drafted and the cost of steps that are not made, is probed now and then: what a probe and its aftermath
have lost is a debt, and the next one waits until a small share of the time has paid it. No choice looks at the tokens
of the step that it is for, so sampling stays exact.

On a busy server most steps also read prompts, and these take c(k) + s + p n for n tokens of them. s and p are taken for
the same for all k and batch sizes, so they follow from steps of one kind, one after the other, with unequal n.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import log2
from statistics import median

from vllm_pard.prompt_cost import PromptCost, Step

__all__ = ["ChoiceLimits", "LengthChoice", "TreeChoice"]


@dataclass(frozen=True, kw_only=True)
class ChoiceLimits:
    """How fast a choice follows, and what looking for a better one may cost."""

    num_drafts: float = 400.0  # older ones count for less: e times less after as many
    prior: float = 5.0  # drafts that say of a token that it is accepted like the one before
    num_costs: int = 25  # steps of a kind that are remembered; their median counts
    num_steps: int = 5  # of a probe; fewer say nothing of a cost
    num_tries: int = 50  # steps after which a probe that had no such steps gives up
    gain: float = 1.02  # that another choice must promise
    probe_share: float = 0.005  # of the time that probes may lose
    min_probe_interval: int = 100  # steps between two probes
    stall: float = 10.0  # times its usual length is the most that a step counts as lost


@dataclass
class _Probe:
    """A choice that is looked at for a few steps whatever is known of it."""

    k: int
    num_left: int
    num_tries: int


class _Batch:
    """What is known of steps of about one batch size."""

    def __init__(self, k: int, prompt_cost: PromptCost, limits: ChoiceLimits) -> None:
        self.k = k  # the present choice
        self.steps: dict[int, deque[Step]] = defaultdict(lambda: deque(maxlen=limits.num_costs))
        self.probe: _Probe | None = None
        self.num_steps = 0
        self.num_steps_since_probe = 0
        self.last_seen: dict[int, int] = {}  # of a k, in which step
        self.debt = 0.0  # seconds that probes have lost
        self.is_settled = False  # the first probes are over; these are for nothing
        self.has_given_up = False  # a probe without steps of its kind
        self._prompt_cost, self._limits = prompt_cost, limits
        self._costs: dict[int, float] = {}  # of a k, as `_prompt_estimates` have it
        self._prompt_estimates = prompt_cost.estimates

    def observe(self, k: int, step: Step) -> None:
        if self.steps[k]:
            self._prompt_cost.observe(self.steps[k][-1], step)
        self.steps[k].append(step)
        self._costs.pop(k, None)
        self.last_seen[k] = self.num_steps

    def cost(self, k: int) -> float | None:
        """Seconds of a step without prompts; None where there were too few."""
        if len(self.steps[k]) < self._limits.num_steps:
            return None
        if self._prompt_estimates != self._prompt_cost.estimates:
            self._prompt_estimates = self._prompt_cost.estimates
            self._costs.clear()
        if k not in self._costs:
            self._costs[k] = median(step.seconds - self._prompt_cost.of(step) for step in self.steps[k])
        return self._costs[k]


class LengthChoice:
    """Chooses k among `lengths`, which hold 0 and at least one more, for each batch size."""

    def __init__(self, lengths: Collection[int], limits: ChoiceLimits | None = None) -> None:
        self.lengths, self.max_k, self.limits = sorted(lengths), max(lengths), limits or ChoiceLimits()
        self._batches: dict[int, _Batch] = {}
        self._size: int | None = None  # of the present one
        self._prompt_cost = PromptCost(self.limits.num_steps)
        self._num_tried = [0.0] * self.max_k  # drafts that were accepted up to a token i, which was there
        self._num_accepted = [0.0] * self.max_k  # those of them in which it was accepted too

    def choose(self, batch_size: int) -> int:
        """k of a step of so many requests."""
        batch = self._batch(batch_size)
        if batch.probe is None:
            batch.probe = self._next_probe(batch)
        if batch.probe is not None:
            return batch.probe.k
        self._change(batch)
        return batch.k

    def observe_step(
        self, batch_size: int, k: int | None, seconds: float, num_tokens: int, num_prompt_tokens: int = 0
    ) -> None:
        """A step of so many requests took so long, yielded so many tokens and read so many of prompts.

        k: how many tokens it drafted, and verified, of each; None if they differ, as after a change.
        """
        batch = self._batch(batch_size)
        batch.num_steps += 1
        step = Step(seconds, num_prompt_tokens)
        if k is not None:
            batch.observe(k, step)
        self._settle(batch, k, seconds - self._prompt_cost.of(step), num_tokens / batch_size)
        batch.num_steps_since_probe += 1
        if batch.probe is not None:
            batch.probe.num_left -= batch.probe.k == k
            batch.probe.num_tries -= 1
            if min(batch.probe.num_left, batch.probe.num_tries) <= 0:
                batch.has_given_up |= batch.probe.num_left > 0
                batch.probe, batch.num_steps_since_probe = None, 0

    def observe_drafts(self, k: int, num_accepted: Iterable[int]) -> None:
        """Of drafts of k tokens each, so many were accepted."""
        old = 1.0 - 1.0 / self.limits.num_drafts
        for number in num_accepted:
            for position in range(min(number + 1, k)):
                self._num_tried[position] = self._num_tried[position] * old + 1.0
                self._num_accepted[position] = self._num_accepted[position] * old + (number > position)

    def length(self, k: int) -> float:
        """L(k): tokens of a step."""
        return 1.0 + sum(accumulate(self._chances()[:k], lambda before, chance: before * chance))

    def _chances(self) -> list[float]:
        """How likely each token is accepted after those before it; while that is hardly known, like the one before."""
        chances, before, weight = [], 1.0, 0.0
        for tried, accepted in zip(self._num_tried, self._num_accepted, strict=True):
            before = (accepted + weight * before) / (tried + weight) if tried + weight else 1.0
            weight = self.limits.prior
            chances.append(before)
        return chances

    def _speed(self, batch: _Batch, k: int) -> float | None:
        cost = batch.cost(k)
        return None if cost is None else self.length(k) / cost

    def _change(self, batch: _Batch) -> None:
        speeds = {k: speed for k in self.lengths if (speed := self._speed(batch, k)) is not None}
        if not speeds:
            return
        best = max(speeds, key=lambda k: speeds[k])
        if batch.k == 0 and batch.debt > 0.0 and batch.is_settled:
            return  # to begin again costs as a probe does
        if speeds[best] > self.limits.gain * speeds.get(batch.k, 0.0):
            batch.k = best

    def _next_probe(self, batch: _Batch) -> _Probe | None:
        """The most first, and each of the others; later one of them again, since both acceptance and costs change."""
        if batch.debt > 0.0 and (batch.is_settled or batch.has_given_up):
            return None
        unknown = next((k for k in reversed(self.lengths) if batch.cost(k) is None), None)
        if unknown is None and batch.num_steps_since_probe < self.limits.min_probe_interval:
            return None
        k = self._other(batch) if unknown is None else unknown
        return _Probe(k, self.limits.num_steps, self.limits.num_tries)

    def _other(self, batch: _Batch) -> int:
        """What to look at: from nothing a little, since the first tokens tell whether more may be worth it."""
        return self.lengths[1] if batch.k == 0 else self._stalest(batch)

    def _stalest(self, batch: _Batch) -> int:
        """What was seen longest ago, but for the present choice."""
        return min((k for k in self.lengths if k != batch.k), key=lambda k: batch.last_seen.get(k, 0))

    def _settle(self, batch: _Batch, k: int | None, seconds: float, num_tokens: float) -> None:
        """Steps of the present choice pay; others owe what they took beyond what it takes for a request's tokens."""
        if k == batch.k:
            if not batch.is_settled and None not in map(batch.cost, self.lengths):
                batch.is_settled, batch.debt = True, 0.0
            batch.debt = max(0.0, batch.debt - self.limits.probe_share * seconds)
        elif (cost := batch.cost(batch.k)) is not None:
            batch.debt += min(seconds, self.limits.stall * cost) - num_tokens * cost / self.length(batch.k)

    def _batch(self, batch_size: int) -> _Batch:
        """Of batch sizes about the same power of the root of 2; a new one begins with its neighbour's choice.

        Users come and go, so that a batch now and then has one request less: it stays the same within a factor of the
        root of 2.
        """
        exact = 2 * log2(batch_size)
        if self._size is None or abs(exact - self._size) > 1:
            self._size = round(exact)
        if self._size not in self._batches:
            nearest = min(self._batches, key=lambda known: abs(known - exact), default=None)
            k = self.max_k if nearest is None else self._batches[nearest].k
            self._batches[self._size] = _Batch(k, self._prompt_cost, self.limits)
        return self._batches[self._size]


class TreeChoice(LengthChoice):
    """The same of trees, of which the first k nodes are verified: the main chain first, then whatever else is likely.

    A step's yield does not follow from shares by depth, so it is counted for each k, and in proportion between two.
    """

    def __init__(self, lengths: Collection[int], limits: ChoiceLimits | None = None) -> None:
        super().__init__(lengths, limits)
        self._yields = {k: _Yield() for k in self.lengths}

    def observe_drafts(self, k: int, num_accepted: Iterable[int]) -> None:
        """Of trees cut to k nodes each, paths of so many were accepted."""
        if k in self._yields:  # near the end of a context there are fewer
            for number in num_accepted:
                self._yields[k].add(number, self.limits.num_drafts)

    def length(self, k: int) -> float:
        """L(k). A tree yields no less than its first nodes do, whatever an older probe has seen of these."""
        known = {other: each.mean for other, each in self._yields.items() if each.num_drafts} | {0: 0.0}
        known = {other: min(mean for more, mean in known.items() if more >= other) for other in known}
        low, high = max(other for other in known if other <= k), min((o for o in known if o >= k), default=max(known))
        if low >= high:
            return 1.0 + known[low]
        return 1.0 + known[low] + (known[high] - known[low]) * (k - low) / (high - low)

    def _other(self, batch: _Batch) -> int:
        return self._stalest(batch)


@dataclass
class _Yield:
    """Tokens that trees of one size have yielded, older ones counting for less."""

    num_drafts: float = 0.0
    num_accepted: float = 0.0

    def add(self, number: int, memory: float) -> None:
        old = 1.0 - 1.0 / memory
        self.num_drafts, self.num_accepted = self.num_drafts * old + 1.0, self.num_accepted * old + number

    @property
    def mean(self) -> float:
        return self.num_accepted / self.num_drafts
