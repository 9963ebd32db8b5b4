"""Acceptance counts and ratios, under vLLM's names. Counts are stored; ratios are taken at the end."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True, kw_only=True)
class AcceptanceStats:
    """What became of the drafts. The bonus token is never counted as accepted."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_per_position: tuple[int, ...] = ()  # [K]; drafts in which the token at this position was accepted

    @classmethod
    def of_draft(cls, num_draft_tokens: int, num_accepted_tokens: int) -> "AcceptanceStats":
        """The counts of a single draft."""
        return cls(
            num_drafts=1,
            num_draft_tokens=num_draft_tokens,
            num_accepted_tokens=num_accepted_tokens,
            accepted_per_position=tuple(int(i < num_accepted_tokens) for i in range(num_draft_tokens)),
        )

    @classmethod
    def from_vllm_metrics(cls, metrics: Iterable[Any]) -> "AcceptanceStats":
        """Read the counters that `LLM.get_metrics()` returns; engines beside each other are added up."""
        stats = cls()
        for metric in metrics:
            match metric.name:
                case "vllm:spec_decode_num_drafts":
                    stats += cls(num_drafts=int(metric.value))
                case "vllm:spec_decode_num_draft_tokens":
                    stats += cls(num_draft_tokens=int(metric.value))
                case "vllm:spec_decode_num_accepted_tokens":
                    stats += cls(num_accepted_tokens=int(metric.value))
                case "vllm:spec_decode_num_accepted_tokens_per_pos":
                    stats += cls(accepted_per_position=tuple(int(value) for value in metric.values))
        return stats

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens emitted per target step: accepted tokens plus the bonus token."""
        return 1 + _ratio(self.num_accepted_tokens, self.num_drafts)

    def acceptance_length_at(self, num_speculative_tokens: int) -> float:
        """What a smaller K would have yielded, where no draft token depends on a later one, as with PARD."""
        return 1 + sum(self.acceptance_by_position[:num_speculative_tokens])

    @property
    def acceptance_rate(self) -> float:
        """Share of the draft tokens that were accepted."""
        return _ratio(self.num_accepted_tokens, self.num_draft_tokens)

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """Share of the drafts in which the token at each position was accepted. [K]"""
        return tuple(_ratio(count, self.num_drafts) for count in self.accepted_per_position)

    def __add__(self, other: "AcceptanceStats") -> "AcceptanceStats":
        return self._combine(other, 1)

    def __sub__(self, earlier: "AcceptanceStats") -> "AcceptanceStats":
        """What happened since an earlier snapshot of the same counters."""
        return self._combine(earlier, -1)

    def _combine(self, other: "AcceptanceStats", sign: int) -> "AcceptanceStats":
        per_pos = zip_longest(self.accepted_per_position, other.accepted_per_position, fillvalue=0)
        return AcceptanceStats(
            num_drafts=self.num_drafts + sign * other.num_drafts,
            num_draft_tokens=self.num_draft_tokens + sign * other.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens + sign * other.num_accepted_tokens,
            accepted_per_position=tuple(mine + sign * theirs for mine, theirs in per_pos),
        )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
