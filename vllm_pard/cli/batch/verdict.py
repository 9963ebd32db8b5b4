"""Whether drafting pays in a batch: said while it runs as soon as it is clear that it does not, and in the end."""

from typing import Any

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.verdict import StepCosts, Verdict, judge, judge_acceptance


class BatchVerdict:
    """Collects what the engine measures while it answers."""

    def __init__(self, num_speculative_tokens: int, measure_command: str) -> None:
        self._num_speculative_tokens, self._measure_command = num_speculative_tokens, measure_command
        self._costs: list[StepCosts] = []
        self._is_said = False

    def add_costs(self, event: dict[str, Any]) -> None:
        """Take costs of one batch size, as the engine process sends them."""
        self._costs.append(
            StepCosts(
                batch_size=event["batch_size"],
                plain_ms=event["plain_ms"],
                step_ms={self._num_speculative_tokens: event["step_ms"]},
                draft_ms=event["draft_ms"],
            )
        )

    def warning(self, stats: AcceptanceStats) -> str | None:
        """A sentence where drafting turns out not to pay; once."""
        if self._is_said or not self._costs:
            return None
        verdict = self._judge(stats)
        if verdict.outcome != "does not pay":
            return None
        self._is_said = True
        return f"{verdict.sentence} (so far, over {stats.num_drafts} drafts; --no-pard decodes without)"

    def final(self, stats: AcceptanceStats) -> str:
        """The last word."""
        if self._costs:
            return self._judge(stats).sentence
        return f"{judge_acceptance(stats)}; {self._measure_command} measures it"

    def _judge(self, stats: AcceptanceStats) -> Verdict:
        """Of the largest batch that was measured: most of the work is done there."""
        return judge(
            stats,
            self._costs,
            num_speculative_tokens=self._num_speculative_tokens,
            batch_size=max(costs.batch_size for costs in self._costs),
        )
