"""Outputs that differ from plain decoding's: rounding, or an error?

A step that verifies drafts computes the same sums in another order than a plain step, and so does a plain step of
another batch size. Rounding then moves logits a little and turns near-ties; the output goes on from the other token.
"""

from dataclasses import dataclass
from typing import Any, Literal

from vllm_pard.bench.verify import NUM_LIKELIEST, Divergence, Verification

Outcome = Literal["equal", "near-ties", "different"]

# By how much, in nats, rounding alone may part two log-probabilities. Logits of likely tokens lie between 16 and 32,
# where neighbouring numbers are 2^-3 (bfloat16), 2^-6 (float16) and 2^-19 (float32) apart.
TOLERANCES = {
    "bfloat16": 0.25,  # two such steps: one for each logit
    "float16": 0.05,  # three: the hidden states' own rounding is no longer hidden by the logits'
    "float32": 1e-3,  # 500: nothing but the order of sums over thousands of numbers, with room for long contexts
}


def tolerance_of(dtype: str) -> float:
    """In nats; a dtype without an own figure is held to float32's."""
    return TOLERANCES.get(dtype, TOLERANCES["float32"])


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a verification means. `control`: plain decoding against itself at another batch size, where it was tried."""

    verification: Verification
    control: Verification | None
    dtype: str  # what the engine computes in

    @property
    def tolerance(self) -> float:
        return tolerance_of(self.dtype)

    @property
    def allowed_gap(self) -> float:
        """The widest gap that is still a near-tie, in nats."""
        return max(self.tolerance, (self.control and self.control.widest_gap) or 0.0)

    @property
    def real_differences(self) -> list[Divergence]:
        """Those that rounding does not explain, the widest first, with unknown gaps before all."""
        real = [found for found in self.verification.divergences if found.gap is None or found.gap > self.allowed_gap]
        return sorted(real, key=lambda found: -float("inf") if found.gap is None else -found.gap)

    @property
    def outcome(self) -> Outcome:
        if not self.verification.divergences:
            return "equal"
        return "different" if self.real_differences else "near-ties"

    @property
    def in_words(self) -> str:
        found = self.verification
        if self.outcome == "equal":
            return f"all {found.num_requests} outputs equal"
        equal = f"{found.num_equal} of {found.num_requests} outputs equal"
        if self.outcome == "near-ties":
            return f"{equal}; {self._near_ties()}{self._control()}: harmless"
        first, *others = self.real_differences
        more = f", and {len(others)} more" if others else ""
        return (
            f"{equal}; DIFFERENT: {self._difference(first)}{more}. Please report this, with the file that --json writes"
        )

    def as_record(self) -> dict[str, Any]:
        return self.verification.as_record() | {
            "control": self.control and self.control.as_record(),
            "judgement": self.outcome,
            "tolerance": self.tolerance,
            "allowed_gap": self.allowed_gap,
            "in_words": self.in_words,
        }

    def _near_ties(self) -> str:
        found = self.verification
        who = "the others part" if found.num_equal else "all part"
        what = "near-ties (gaps up to"
        if len(found.divergences) == 1:
            who, what = "the other parts" if found.num_equal else "it parts", "a near-tie (a gap of"
        return f"{who} at {what} {found.widest_gap:.2g} nats; rounding in {self.dtype} explains {self.tolerance:g})"

    def _control(self) -> str:
        if self.control is None:
            return ""
        where = f"itself at {self.control.concurrency} at a time"
        if not self.control.divergences:
            return f", while plain decoding equals {where}"
        gap = "" if self.control.widest_gap is None else f", up to {self.control.widest_gap:.2g} nats"
        return (
            f", as plain decoding parts from {where} "
            f"({len(self.control.divergences)} of {self.control.num_requests}{gap})"
        )

    def _difference(self, found: Divergence) -> str:
        where = f"request {found.request!r} at position {found.position}"
        if found.got is None:
            return f"{where} ends without an end token, where plain decoding goes on with {found.expected}"
        if found.expected is None:
            return f"{where} goes on with {found.got}, where plain decoding was cut off"
        tokens = f"{where} has {found.got} instead of {found.expected}"
        if found.gap is None:
            return f"{tokens}, and is not among plain decoding's {NUM_LIKELIEST} likeliest there"
        explained = f"rounding explains {self.allowed_gap:.2g}"
        return f"{tokens}, by plain decoding {found.gap:.2g} nats less likely ({explained})"
