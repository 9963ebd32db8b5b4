"""The real scheduler's mixin on what it needs of vLLM's scheduler, without vLLM."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from vllm_pard.serving.scheduler import ChoosesLength

PROMPT = 30


@dataclass
class Request:
    """A request, as vLLM's scheduler knows it."""

    request_id: str
    num_left: float  # tokens of its answer
    has_read: bool  # its prompt
    spec_token_ids: list[int] = field(default_factory=list)


class FakeScheduler:
    """Every request runs, from the step on that reads its prompt."""

    def __init__(self, runner: str, *, max_k: int = 4, max_num_reqs: int = 8, tree_depth: int | None = None) -> None:
        spec = SimpleNamespace(lengths=range(max_k + 1), runner=runner, tree_depth=tree_depth)
        self.vllm_config = SimpleNamespace(speculative_config=spec)
        self.max_num_running_reqs = max_num_reqs
        self.requests: dict[str, Request] = {}
        self.dynamic_sd_lookup: list[int] = []

    @property
    def running(self) -> list[Request]:
        return [request for request in self.requests.values() if request.has_read]

    def add(self, *names: str, num_left: float = math.inf, has_read: bool = True) -> None:
        self.requests |= {name: Request(name, num_left, has_read) for name in names}

    def schedule(self) -> Any:
        drafts = {
            name: list(request.spec_token_ids) for name, request in self.requests.items() if request.spec_token_ids
        }
        return SimpleNamespace(
            num_scheduled_tokens={
                name: 1 + len(drafts.get(name, ())) if request.has_read else PROMPT
                for name, request in self.requests.items()
            },
            scheduled_spec_decode_tokens=drafts,
            num_spec_tokens_to_schedule=self.dynamic_sd_lookup[0],
        )

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> None:
        sampled = zip(model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids, strict=True)
        for name, tokens in sampled:
            request = self.requests[name]
            request.has_read = True
            request.num_left -= len(tokens)
            request.spec_token_ids = [7] * scheduler_output.num_spec_tokens_to_schedule
            if request.num_left <= 0:
                del self.requests[name]


class Scheduler(ChoosesLength, FakeScheduler):
    """The real mixin on it."""

    def finish(self, output: Any, accept: Callable[[int], int]) -> int:
        """Of each request's drafts so many are accepted, told their number. Returns the tokens of the step."""
        drafts = output.scheduled_spec_decode_tokens
        sampled = [[7] * (1 + accept(len(drafts.get(name, ())))) for name in output.num_scheduled_tokens]
        places = {name: place for place, name in enumerate(output.num_scheduled_tokens)}
        self.update_from_output(output, SimpleNamespace(sampled_token_ids=sampled, req_id_to_index=places))
        return sum(map(len, sampled))
