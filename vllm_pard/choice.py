"""How many tokens to draft, chosen while a server runs: as many as give the most tokens a second, or none.

A step with k drafts takes c(k) and yields L(k) = 1 + a_1 + ... + a_k tokens of a request, a_i being the share of drafts
whose token i is accepted. Costs are those of this batch size on this machine, acceptance is that of the newest drafts;
both are taken from steps that were made anyway. What can't be seen from the present choice, the acceptance of tokens
that are not drafted and the cost of steps that are not made, is probed now and then: what a probe and its aftermath
have lost is a debt, and the next one waits until a small share of the time has paid it. No choice looks at the tokens
of the step that it is for, so sampling stays exact.

A server begins with no drafts and tries more and more of them, until what it tries is much slower than what it knows.
Another batch size begins with the choice of the nearest one, and with its costs, in proportion, if one is near.

On a busy server most steps also read prompts, and these take c(k) + s + p n for n tokens of them. s and p are taken for
the same for all k and batch sizes, so they follow from steps of one kind, one after the other, with unequal n.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import inf, log2

from vllm_pard.choice_batch import Batch, ChoiceLimits
from vllm_pard.prompt_cost import PromptCost, Step

__all__ = ["ChoiceLimits", "LengthChoice", "TreeChoice"]


class LengthChoice:
    """Chooses k among `lengths`, which hold 0 and at least one more, for each batch size."""

    def __init__(
        self, lengths: Collection[int], limits: ChoiceLimits | None = None, *, tries_none_last: bool = False
    ) -> None:
        """`tries_none_last` where a request that was there in a step without drafts gets none any more."""
        self.lengths, self.max_k, self.limits = sorted(lengths), max(lengths), limits or ChoiceLimits()
        self._first_probes = [*self.lengths[1:], 0] if tries_none_last else self.lengths
        self._batches: dict[int, Batch] = {}
        self._size: int | None = None  # of the present one
        self._prompt_cost = PromptCost(self.limits.num_steps)
        self._num_tried = [0.0] * self.max_k  # drafts that were accepted up to a token i, which was there
        self._num_accepted = [0.0] * self.max_k  # those of them in which it was accepted too

    def choose(self, batch_size: int) -> int:
        """k of a step of so many requests."""
        batch = self._batch(batch_size)
        if not batch.is_settled:
            self._follow(batch)
        if batch.probe is None and (k := self._next_probe(batch)) is not None:
            batch.begin_probe(k)
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
                if not batch.is_settled and self._is_much_slower(batch, batch.probe.k, batch_size):
                    batch.put_off = batch.probe.k
                batch.probe, batch.num_steps_since_probe = None, 0
                self._change(batch)

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

    def _speed(self, batch: Batch, k: int) -> float | None:
        cost = self._cost(batch, k)
        return None if cost is None else self.length(k) / cost

    def _cost(self, batch: Batch, k: int) -> float | None:
        """Seconds of a step; until they are known, in proportion to those of a near batch size."""
        own = batch.cost(k)
        if own is not None or (known := batch.best_known()) is None:
            return own
        common, mine = known
        for other in self._near(batch.size):
            theirs, theirs_of_k = other.cost(common), other.cost(k)
            if theirs is not None and theirs_of_k is not None:
                return mine * theirs_of_k / theirs
        return None

    def _near(self, size: float) -> list[Batch]:
        """Batch sizes that say something of this one, the nearest first."""
        near = (batch for batch in self._batches.values() if abs(batch.size - size) <= self.limits.near)
        return sorted(near, key=lambda batch: abs(batch.size - size))

    def _speeds(self, batch: Batch) -> dict[int, float]:
        return {k: speed for k in self.lengths if (speed := self._speed(batch, k)) is not None}

    def _change(self, batch: Batch) -> None:
        speeds = self._speeds(batch)
        if not speeds:
            return
        best = max(speeds, key=lambda k: speeds[k])
        if batch.k == 0 and batch.debt > 0.0 and batch.is_settled:
            return  # to begin again costs as a probe does
        if speeds[best] > self.limits.gain * speeds.get(batch.k, 0.0):
            batch.k = best

    def _follow(self, batch: Batch) -> None:
        """Until a batch size is settled, its choice is that of the nearest one that is, if it is near."""
        settled = next((other for other in self._near(batch.size) if other.is_settled), None)
        if settled is not None:
            batch.k, batch.put_off = settled.k, settled.put_off

    def _next_probe(self, batch: Batch) -> int | None:
        """What nothing is known of; later each of the others, since both acceptance and costs change."""
        if batch.debt > 0.0 and (batch.is_settled or batch.has_given_up):
            return None
        if batch.is_settled:
            is_time = batch.num_steps_since_probe >= self.limits.min_probe_interval
            return self._other(batch) if is_time else None
        unknown = [k for k in self._first(batch) if self._cost(batch, k) is None]
        if not unknown:
            return None
        return batch.k if batch.k in unknown else unknown[0]

    def _first(self, batch: Batch) -> list[int]:
        return [k for k in self._first_probes if k <= batch.put_off or k == batch.k]

    def _is_much_slower(self, batch: Batch, k: int, batch_size: int) -> bool:
        """Whether it is clear that k is not the best, and so that more are not."""
        cost = batch.cost(k)
        if k == 0 or cost is None or batch_size * self.limits.num_steps < self.limits.few_drafts:
            return False
        return self.limits.much * self.length(k) / cost < max(self._speeds(batch).values())

    def _other(self, batch: Batch) -> int:
        """What to look at: from nothing a little, since the first tokens tell whether more may be worth it."""
        return self.lengths[1] if batch.k == 0 else self._stalest(batch)

    def _stalest(self, batch: Batch) -> int:
        """What was not seen yet and seems best, or else was seen longest ago, but for the present choice."""
        others = [k for k in self.lengths if k != batch.k]
        if unseen := [k for k in others if batch.cost(k) is None]:
            return max(unseen, key=lambda k: self._speed(batch, k) or 0.0)
        return min(others, key=lambda k: batch.last_seen[k])

    def _settle(self, batch: Batch, k: int | None, seconds: float, num_tokens: float) -> None:
        """Steps of the present choice pay; others owe what they took beyond what it takes for a request's tokens."""
        if k == batch.k:
            if not batch.is_settled and all(self._cost(batch, first) is not None for first in self._first(batch)):
                batch.is_settled = True
                if batch.put_off == inf:
                    batch.debt = 0.0
            batch.debt = max(0.0, batch.debt - self.limits.probe_share * seconds)
        elif (cost := batch.cost(batch.k)) is not None:
            batch.debt += min(seconds, self.limits.stall * cost) - num_tokens * cost / self.length(batch.k)

    def _batch(self, batch_size: int) -> Batch:
        """Of batch sizes about the same power of the root of 2; a new one begins with a near one's choice.

        Users come and go, so that a batch now and then has one request less: it stays the same within a factor of the
        root of 2.
        """
        exact = 2 * log2(batch_size)
        if self._size is None or abs(exact - self._size) > 1:
            self._size = round(exact)
        if self._size not in self._batches:
            near = self._near(exact)
            k = near[0].k if near else self._first_probes[0]
            self._batches[self._size] = Batch(self._size, k, self._prompt_cost, self.limits)
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

    def _other(self, batch: Batch) -> int:
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
