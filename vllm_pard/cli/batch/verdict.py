"""Whether drafting pays in a batch: said while it runs as soon as it is clear that it does not, and in the end."""

from collections.abc import Sequence
from typing import Any

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.verdict import StepCosts, Verdict, judge, judge_acceptance

ALIKE = 1.5  # batch sizes whose steps cost about the same


class BatchVerdict:
    """Collects what the engine measures while it answers; where it can't, costs that are known already serve."""

    def __init__(self, num_speculative_tokens: int, measure_command: str, known: Sequence[StepCosts] = ()) -> None:
        self._num_speculative_tokens, self._measure_command = num_speculative_tokens, measure_command
        self._measured: list[StepCosts] = []
        self._known = [costs for costs in known if num_speculative_tokens in costs.step_ms]
        self._is_said = False

    def add_costs(self, event: dict[str, Any]) -> None:
        """Take costs of one batch size, as the engine process sends them."""
        self._measured.append(
            StepCosts(
                batch_size=event["batch_size"],
                plain_ms=event["plain_ms"],
                step_ms={self._num_speculative_tokens: event["step_ms"]},
                draft_ms=event["draft_ms"],
            )
        )

    def warning(self, stats: AcceptanceStats, batch_size: int) -> str | None:
        """A sentence where drafting turns out not to pay; once."""
        verdict = None if self._is_said else self._judge(stats, batch_size)
        if verdict is None or verdict.outcome != "does not pay":
            return None
        self._is_said = True
        return f"{verdict.sentence} (so far, over {stats.num_drafts} drafts; --no-pard decodes without)"

    def final(self, stats: AcceptanceStats, batch_size: int) -> str:
        """The last word. `batch_size`: that of most steps."""
        if verdict := self._judge(stats, batch_size):
            return verdict.sentence
        sizes = f" --batch-sizes {batch_size}" if batch_size else ""
        return f"{judge_acceptance(stats)}; {self._measure_command}{sizes} measures it, for later runs too"

    def _judge(self, stats: AcceptanceStats, batch_size: int) -> Verdict | None:
        """Of the largest batch that was measured, since most of the work is done there; or of a known one like it."""
        if self._measured:
            costs, size = self._measured, max(one.batch_size for one in self._measured)
        else:
            costs = self._known
            alike = [one.batch_size for one in costs if 1 / ALIKE <= one.batch_size / max(batch_size, 1) <= ALIKE]
            if not alike:
                return None
            size = min(alike, key=lambda known: abs(known - batch_size))
        return judge(stats, costs, num_speculative_tokens=self._num_speculative_tokens, batch_size=size)
