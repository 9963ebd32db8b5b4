"""vLLM's scheduler with one more thing to decide in a step: how many draft tokens each request gets.

It sees what the choice needs: when each step's output came, how many drafts it verified, and how many were accepted.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_pard.choice import LengthChoice, TreeChoice

# A mixin has no base of its own while it runs; a type checker gives it one that knows nothing.
Base: Any = Any if TYPE_CHECKING else object

SCHEDULER_CLS = "vllm_pard.serving.scheduler.make_scheduler"


MOST = 0.75  # of a step's requests make it a step of their kind


class LastStep(NamedTuple):
    """The step before, whose output has come."""

    requests: frozenset[str]
    came: float


class ChoosesLength(Base):
    """Mixin of a scheduler."""

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        spec = self.vllm_config.speculative_config
        self._is_v1 = spec.runner == "v1"
        self.choice = (
            TreeChoice(spec.lengths)
            if spec.tree_depth is not None
            else LengthChoice(spec.lengths, tries_none_last=self._is_v1)
        )
        self._blind: set[str] = set()  # on V1: requests of which the draft has not read all
        self._last: LastStep | None = None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Choose for this step, and let vLLM schedule it."""
        # Who waits may join in this step.
        k = self.choice.choose(min(max(len(self.requests), 1), self.max_num_running_reqs))
        if self._is_v1 and self._all_are_blind():
            k = 0
        self.dynamic_sd_lookup = [k] * (self.max_num_running_reqs + 1)
        output = super().schedule(*args, **kwargs)
        if self._is_v1 and k == 0:
            self._blind |= output.num_scheduled_tokens.keys()
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take note of a step, and let vLLM do so."""
        self._observe(scheduler_output, model_runner_output)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _all_are_blind(self) -> bool:
        """Drop drafts of requests of which the draft has not read all; whether no other is there to draft for."""
        self._blind &= self.requests.keys()
        for request in self.running:
            if request.request_id in self._blind:
                request.spec_token_ids = []
        return bool(self.requests) and self._blind.issuperset(self.requests)

    def _observe(self, scheduler_output: Any, model_runner_output: Any) -> None:
        scheduled, drafts = scheduler_output.num_scheduled_tokens, scheduler_output.scheduled_spec_decode_tokens
        if not scheduled:
            return
        sampled, places = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
        yields = {request: len(sampled[places[request]]) for request in scheduled if request in places}
        for request in drafts:
            if yields.get(request) and request not in self._blind:
                self.choice.observe_drafts(len(drafts[request]), [yields[request] - 1])
        last, self._last = self._last, LastStep(frozenset(scheduled), self.clock())
        if last is None or last.requests.isdisjoint(scheduled):
            return  # who knows what was waited for
        reads = [number for request, number in scheduled.items() if number != 1 + len(drafts.get(request, ()))]
        if sum(reads) <= len(scheduled) * self.choice.max_k:  # more would hide what drafts cost
            seconds, k = self._last.came - last.came, self._kind(scheduler_output)
            self.choice.observe_step(len(scheduled), k, seconds, sum(yields.values()), sum(reads))

    def _kind(self, scheduler_output: Any) -> int | None:
        """k if a step drafted so many tokens and verified as many of nearly every request, else None."""
        scheduled, drafts = scheduler_output.num_scheduled_tokens, scheduler_output.scheduled_spec_decode_tokens
        numbers = Counter(len(drafts.get(request, ())) for request in scheduled)
        k = max(numbers)
        is_steady = scheduler_output.num_spec_tokens_to_schedule == k
        return k if is_steady and numbers[k] >= MOST * len(scheduled) else None


def make_scheduler(*, vllm_config: Any, **kwargs: Any) -> Any:
    """In the place of a scheduler's class: whether steps overlap is known when the engine starts."""
    if vllm_config.scheduler_config.async_scheduling:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler as Scheduler
    else:
        from vllm.v1.core.sched.scheduler import Scheduler

    chooses = type("PardScheduler", (ChoosesLength, Scheduler), {})
    return chooses(vllm_config=vllm_config, **kwargs)
