"""A watch on acceptance: drafts of which nothing is kept cost time and change no output, so nobody would notice.

It counts what the worker hands to the scheduler anyway, on the host: no step waits for it. The step that is in flight
when a request ends is counted here and not by the scheduler. vLLM's compiled Ray graph calls the model runner past the
worker, so there is no watch there.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from vllm.v1.outputs import AsyncModelRunnerOutput

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.verdict import HARDLY_EVER_PAYS


@dataclass(frozen=True, kw_only=True)
class WatchLimits:
    """When acceptance is too low to be bad luck."""

    num_drafts: int = 4000  # are judged together, and then forgotten
    mean_acceptance_length: float = HARDLY_EVER_PAYS
    seconds_between_warnings: float = 3600.0


class AcceptanceWatch:
    """Counts drafts, and warns where too few of their tokens are kept."""

    def __init__(
        self,
        warn: Callable[[AcceptanceStats], None],
        limits: WatchLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._warn, self._limits, self._clock = warn, limits, clock
        self._counts = AcceptanceStats()
        self._silent_until = -float("inf")

    def watch(self, output: Any, drafted: Collection[str]) -> Any:
        """Count a step's output when it is known; `drafted` names the requests whose drafts the step verifies."""
        if not drafted:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            self._count_later(output, drafted)
        else:
            self.count(output, drafted)
        return output

    def _count_later(self, output: AsyncModelRunnerOutput, drafted: Collection[str]) -> None:
        """An output that is still on its way from the device: whoever waits for it has it counted."""
        get_output = output.get_output

        def get_and_count() -> Any:
            known = get_output()
            self.count(known, drafted)
            return known

        output.get_output = get_and_count

    def count(self, output: Any, drafted: Collection[str]) -> None:
        """Add a step; as vLLM counts, a request that got no token had no draft."""
        yields = [len(output.sampled_token_ids[output.req_id_to_index[request]]) for request in drafted]
        num_drafts = sum(num_tokens > 0 for num_tokens in yields)
        self._counts += AcceptanceStats(num_drafts=num_drafts, num_accepted_tokens=sum(yields) - num_drafts)
        if self._counts.num_drafts < self._limits.num_drafts:
            return
        counts, self._counts = self._counts, AcceptanceStats()
        now = self._clock()
        if counts.mean_acceptance_length < self._limits.mean_acceptance_length and now >= self._silent_until:
            self._silent_until = now + self._limits.seconds_between_warnings
            self._warn(counts)


def warning(counts: AcceptanceStats, spec: Any, target: str) -> str:
    """What the numbers are, and where to look first."""
    return (
        f"PARD: mean acceptance length {counts.mean_acceptance_length:.2f} over the last {counts.num_drafts} drafts "
        f"({counts.num_accepted_tokens} draft tokens kept, K={spec.num_speculative_tokens}): outputs are right, but "
        "the draft costs time and saves next to none. Likely causes, the likeliest first: "
        f"1. the mask token {spec.mask_token_id} is not the one that the draft {spec.model!r} was trained with; "
        "2. prompts have no chat template, or another one than the draft's training text; "
        f"3. the draft was trained for another target than {target!r}; "
        "4. the draft's K/V cache is broken, by a fault of vllm_pard: if `vllm-pard generate --engine reference` "
        "accepts more on the same prompts, please report it"
    )
