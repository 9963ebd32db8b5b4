"""vLLM's scheduler with one more thing to decide in a step: how many draft tokens each request gets.

It sees what the choice needs: when each step's output came, how many drafts it verified, and how many were accepted.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_pard.choice import LengthChoice, TreeChoice

# A mixin has no base of its own while it runs; a type checker gives it one that knows nothing.
Base: Any = Any if TYPE_CHECKING else object

SCHEDULER_CLS = "vllm_pard.serving.scheduler.make_scheduler"


class Step(NamedTuple):
    """A step whose output has come."""

    requests: frozenset[str]
    k: int | None  # drafts that each of them verified; None where they differ, or prompts were read
    came: float


class ChoosesLength(Base):
    """Mixin of a scheduler."""

    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        spec = self.vllm_config.speculative_config
        self.choice = (LengthChoice if spec.tree_depth is None else TreeChoice)(spec.lengths)
        self._truncates = spec.runner == "v1"
        self._blind: set[str] = set()  # on V1: requests of which the draft has not read all
        self._last: Step | None = None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Choose for this step, and let vLLM schedule it."""
        k = self.choice.choose(max(len(self.running), 1))
        # On V1 drafts are always as many as the draft was planned for, or none.
        drafted = self.num_spec_tokens if self._truncates and k > 0 else k
        self.dynamic_sd_lookup = [drafted] * (self.max_num_running_reqs + 1)
        if self._truncates:
            self._truncate(k)
        output = super().schedule(*args, **kwargs)
        if self._truncates and k == 0:
            self._blind |= output.num_scheduled_tokens.keys()
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take note of a step, and let vLLM do so."""
        self._observe(scheduler_output, model_runner_output)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _truncate(self, k: int) -> None:
        """Verify the first k drafts of those that the step before has made, none of a draft that has missed tokens."""
        self._blind &= self.requests.keys()
        for request in self.running:
            if request.spec_token_ids:
                request.spec_token_ids = request.spec_token_ids[: 0 if request.request_id in self._blind else k]

    def _observe(self, scheduler_output: Any, model_runner_output: Any) -> None:
        scheduled, drafts = scheduler_output.num_scheduled_tokens, scheduler_output.scheduled_spec_decode_tokens
        if not scheduled:
            return
        now, requests = self.clock(), frozenset(scheduled)
        numbers = {len(drafts.get(request, ())) for request in scheduled}
        is_decode = all(number == 1 + len(drafts.get(request, ())) for request, number in scheduled.items())
        k = numbers.pop() if is_decode and len(numbers) == 1 else None
        last, self._last = self._last, Step(requests, k, now)
        sampled, places = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
        accepted = [len(sampled[places[request]]) - 1 for request in drafts if request in places]
        for request, number in zip(drafts, accepted, strict=False):
            if number >= 0 and request not in self._blind:
                self.choice.observe_drafts(len(drafts[request]), [number])
        # The step before has drafted as many, and nothing else took the time since.
        if k is not None and last is not None and last.k == k and requests <= last.requests:
            self.choice.observe_step(len(requests), k, now - last.came)


def make_scheduler(*, vllm_config: Any, **kwargs: Any) -> Any:
    """In the place of a scheduler's class: whether steps overlap is known when the engine starts."""
    if vllm_config.scheduler_config.async_scheduling:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler as Scheduler
    else:
        from vllm.v1.core.sched.scheduler import Scheduler

    chooses = type("PardScheduler", (ChoosesLength, Scheduler), {})
    return chooses(vllm_config=vllm_config, **kwargs)
