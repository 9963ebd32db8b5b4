"""Does drafting pay? From the acceptance by position and the measured costs of steps, said in one sentence.

A step with K drafts yields L(K) = 1 + a_1 + ... + a_K tokens of a request, a_i being the share of drafts whose token i
is accepted; a plain step yields one. So drafting pays where L(K) is above the cost of its step in plain steps. No token
of a PARD draft depends on a later one, so a_1 ... a_k are the same for every K from k on, and one run at K tells what
each smaller K would yield.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from vllm_pard.metrics import AcceptanceStats

Outcome = Literal["pays", "makes no difference", "does not pay", "unknown"]

MIN_NUM_DRAFTS = 20  # fewer say nothing, whatever their spread
NUM_STANDARD_ERRORS = 2.0
HARDLY_EVER_PAYS = 1.2  # tokens a step; hardly any draft is so cheap
NOISE = 0.03  # step costs differ by as much from run to run
TOO_NOISY = 0.1  # more leaves room for a difference that matters
WORTH_A_CHANGE = 1.05  # another K is proposed where it is faster by this factor


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What decode steps of a batch take, in milliseconds."""

    batch_size: int
    plain_ms: float
    step_ms: Mapping[int, float]  # by K, the number of drafts a request
    draft_ms: float | None = None  # of such a step, what the draft's forward takes; None: not known
    noise: float = NOISE  # relative; how far apart two equal measurements may be

    def at(self, k: int) -> "tuple[float, bool] | None":
        """Milliseconds of a step with k drafts, and whether that is only the least that it can be.

        What lies between two measured K is interpolated: a step costs a part that is always the same and one a row.
        Below the smallest, the draft's forward stays; where it is not known it is taken for free.
        """
        smaller = max((measured for measured in self.step_ms if measured <= k), default=0)
        larger = min((measured for measured in self.step_ms if measured >= k), default=None)
        if larger is None:
            return None
        fixed = (self.draft_ms or 0.0) if smaller == 0 else 0.0
        low = self.step_ms[smaller] if smaller else self.plain_ms + fixed
        share = (k - smaller) / (larger - smaller) if larger > smaller else 0.0
        return low + (self.step_ms[larger] - low) * share, smaller == 0 and self.draft_ms is None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One K at one batch size."""

    num_speculative_tokens: int
    batch_size: int
    speed_up: float  # over plain decoding
    is_measured: bool
    is_at_best: bool = False  # no more than this


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether drafting pays. `best`: the fastest known choice at this batch size; None where plain decoding is."""

    outcome: Outcome
    sentence: str
    speed_up: float
    best: Choice | None


def judge(
    stats: AcceptanceStats,
    costs: Sequence[StepCosts],
    *,
    num_speculative_tokens: int,
    batch_size: int,
    name: str = "PARD",
) -> Verdict:
    """Judge K at one batch size; look for a better one there, and where none pays, for a batch size at which one does.

    Args:
        stats: counted with this K.
        costs: of each measured batch size; `batch_size` with `num_speculative_tokens` is one of them.
        name: of what drafts.
    """
    here = next(cost for cost in costs if cost.batch_size == batch_size)
    length, error = stats.mean_acceptance_length, NUM_STANDARD_ERRORS * standard_error(stats)
    ratio = here.step_ms[num_speculative_tokens] / here.plain_ms
    speed_up = length / ratio
    outcome = _outcome(speed_up, error / length, here.noise, stats.num_drafts)
    where = f"at K={num_speculative_tokens}, {batch_size} at a time"
    if outcome == "unknown":
        sentence = _why_unknown(stats, here, ratio, f"{name} pays {where}")
        return Verdict(outcome=outcome, sentence=sentence, speed_up=speed_up, best=None)
    now = Choice(
        num_speculative_tokens=num_speculative_tokens, batch_size=batch_size, speed_up=speed_up, is_measured=True
    )
    choices = [now, *_choices(stats, here)]
    best = _fastest(choice for choice in choices if not choice.is_at_best)
    sentence = (
        f"{name} {outcome} {where}: {speed_up:.2f}x plain decoding (a step takes {ratio:.2f} times a plain one and "
        f"yields {length:.2f} tokens){_advice(now, best, _fastest(choices), stats, here, costs)}"
    )
    pays = best.speed_up > 1 + here.noise
    return Verdict(outcome=outcome, sentence=sentence, speed_up=speed_up, best=best if pays else None)


def judge_acceptance(stats: AcceptanceStats) -> str:
    """What can be said where step costs are not known."""
    length, error = stats.mean_acceptance_length, NUM_STANDARD_ERRORS * standard_error(stats)
    if stats.num_drafts >= MIN_NUM_DRAFTS and length + error < HARDLY_EVER_PAYS:
        return f"{length:.2f} tokens a step hardly ever pay for a draft: decode without one"
    return f"whether {length:.2f} tokens a step pay for the draft depends on what steps cost here"


def standard_error(stats: AcceptanceStats) -> float:
    """Of the mean acceptance length, taking drafts as independent."""
    if stats.num_drafts < 2:
        return float("inf")
    shares = stats.acceptance_by_position  # the share of drafts with at least i + 1 accepted tokens
    mean = sum(shares)
    mean_square = sum((2 * i + 1) * share for i, share in enumerate(shares))
    return sqrt(max(mean_square - mean**2, 0.0) / stats.num_drafts)


def _why_unknown(stats: AcceptanceStats, costs: StepCosts, ratio: float, question: str) -> str:
    length = stats.mean_acceptance_length
    if stats.num_drafts < 2:
        return f"too few drafts to tell whether {question}: {stats.num_drafts}"
    if costs.noise > TOO_NOISY and stats.num_drafts >= MIN_NUM_DRAFTS:
        return (
            f"speeds differ too much from run to run to tell whether {question}: {length / ratio:.2f}x plain decoding "
            f"± {costs.noise:.0%}"
        )
    error = NUM_STANDARD_ERRORS * standard_error(stats)
    return (
        f"too few drafts to tell whether {question}: {length:.2f} ± {error:.2f} tokens a step over "
        f"{stats.num_drafts} drafts, and it pays from {ratio:.2f} on"
    )


def _outcome(speed_up: float, error: float, noise: float, num_drafts: int) -> Outcome:
    if num_drafts < MIN_NUM_DRAFTS:
        return "unknown"
    if speed_up > 1 + noise + error:
        return "pays"
    if speed_up < 1 - noise - error:
        return "does not pay"
    return "unknown" if error > noise or noise > TOO_NOISY else "makes no difference"


def _choices(stats: AcceptanceStats, costs: StepCosts) -> Iterator[Choice]:
    """Every K whose cost is known, or at least bounded."""
    for k in range(1, len(stats.acceptance_by_position) + 1):
        if found := costs.at(k):
            step_ms, is_least = found
            yield Choice(
                num_speculative_tokens=k,
                batch_size=costs.batch_size,
                speed_up=stats.acceptance_length_at(k) * costs.plain_ms / step_ms,
                is_measured=k in costs.step_ms,
                is_at_best=is_least,
            )


def _fastest(choices: Iterable[Choice]) -> Choice:
    return max(choices, key=lambda choice: choice.speed_up)


def _advice(
    now: Choice, best: Choice, hoped: Choice, stats: AcceptanceStats, here: StepCosts, costs: Sequence[StepCosts]
) -> str:
    """`hoped` may be one whose speed-up is only bounded."""
    least = max(now.speed_up * WORTH_A_CHANGE, 1 + here.noise)
    if best.speed_up > least:
        gains = "gains" if best.is_measured else "would gain"
        return f"; K={best.num_speculative_tokens} {gains} more, {best.speed_up:.2f}x"
    if hoped.speed_up > least:
        return f"; K={hoped.num_speculative_tokens} might gain more, {hoped.speed_up:.2f}x at the very best: measure it"
    if now.speed_up > 1 + here.noise:
        return ""
    elsewhere = [choice for cost in costs if cost is not here for choice in _choices(stats, cost)]
    paying = [choice for choice in elsewhere if choice.speed_up > 1 + here.noise and not choice.is_at_best]
    if not paying:
        return "; no smaller K would, either: decode without drafts"
    there = _fastest(paying)
    return (
        f"; no smaller K would, either, but K={there.num_speculative_tokens} pays at {there.batch_size} at a time, "
        f"{there.speed_up:.2f}x"
    )
