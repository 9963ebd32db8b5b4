"""What one run of one method gave, and what many runs say together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from vllm_pard.metrics import AcceptanceStats


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One pass over all prompts. Latencies are None where an engine has no stream of tokens."""

    num_requests: int
    num_tokens: int  # output tokens
    seconds: float
    ttft_p50_ms: float | None = None  # time to first token
    ttft_p99_ms: float | None = None
    itl_p50_ms: float | None = None  # between two pieces of a stream: with a draft, the time of one step
    itl_p99_ms: float | None = None
    tpot_p50_ms: float | None = None  # time per output token after the first, median over requests
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


@dataclass(kw_only=True)
class Cell:
    """All runs of one method at one concurrency; `failure` says why there are fewer than asked for."""

    label: str
    concurrency: int
    runs: list[Measurement] = field(default_factory=list)
    failure: str | None = None

    @property
    def tokens_per_second(self) -> float:
        """Median over the runs."""
        return median(run.tokens_per_second for run in self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest tokens/s."""
        speeds = [run.tokens_per_second for run in self.runs]
        return min(speeds), max(speeds)

    @property
    def tokens_per_second_per_user(self) -> float:
        """What one user sees while tokens come: the inverse of the time per output token."""
        tpot = self.median_of("tpot_p50_ms")
        return 1000 / tpot if tpot else self.tokens_per_second / self.concurrency

    @property
    def stats(self) -> AcceptanceStats:
        return sum((run.stats for run in self.runs), AcceptanceStats())

    def median_of(self, name: str) -> float | None:
        """Median over the runs of one latency."""
        values = [getattr(run, name) for run in self.runs]
        known: Sequence[float] = [value for value in values if value is not None]
        return median(known) if known else None

    def as_record(self) -> dict[str, Any]:
        """For the result file: the runs with their counts first, then what follows from them."""
        record: dict[str, Any] = {"method": self.label, "concurrency": self.concurrency, "failure": self.failure}
        record["runs"] = [asdict(run) for run in self.runs]
        if self.runs:
            record |= {
                "tokens_per_second": self.tokens_per_second,
                "tokens_per_second_per_user": self.tokens_per_second_per_user,
                "step_ms": self.median_of("itl_p50_ms"),
                "mean_acceptance_length": self.stats.mean_acceptance_length,
                "acceptance_by_position": self.stats.acceptance_by_position,
            }
        return record
