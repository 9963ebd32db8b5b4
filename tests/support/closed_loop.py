"""A server that is made up, around the real scheduler's mixin: users who each send a request after the other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any

from vllm_pard.choice import LengthChoice
from vllm_pard.serving.scheduler import ChoosesLength

Cost = Callable[[int, int, int], float]  # requests, rows of the target, drafts of each request -> seconds
PROMPT = 30


@dataclass
class User:
    """A request, as vLLM's scheduler knows it."""

    request_id: str
    num_left: int
    has_read: bool = False
    spec_token_ids: list[int] = field(default_factory=list)


class ClosedLoop:
    """What the mixin needs of vLLM's scheduler."""

    def __init__(self, runner: str, max_k: int, num_users: int) -> None:
        self.vllm_config = SimpleNamespace(
            speculative_config=SimpleNamespace(lengths=range(max_k + 1), runner=runner, tree_depth=None)
        )
        self.num_spec_tokens, self.max_num_running_reqs = max_k, num_users
        self.requests: dict[str, User] = {}
        self.dynamic_sd_lookup: list[int] = []

    @property
    def running(self) -> list[User]:
        return [user for user in self.requests.values() if user.has_read]

    def schedule(self) -> Any:
        drafts = {name: list(user.spec_token_ids) for name, user in self.requests.items() if user.spec_token_ids}
        return SimpleNamespace(
            num_scheduled_tokens={
                name: 1 + len(drafts.get(name, ())) if user.has_read else PROMPT for name, user in self.requests.items()
            },
            scheduled_spec_decode_tokens=drafts,
            num_spec_tokens_to_schedule=self.dynamic_sd_lookup[0],
        )

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> None:
        for name, tokens in zip(
            model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids, strict=True
        ):
            user = self.requests[name]
            user.has_read = True
            user.num_left -= len(tokens)
            user.spec_token_ids = [7] * scheduler_output.num_spec_tokens_to_schedule
            if user.num_left <= 0:
                del self.requests[name]


class Scheduler(ChoosesLength, ClosedLoop):
    """The real mixin on it."""


class Fixed(LengthChoice):
    """The same k always."""

    def __init__(self, k: int) -> None:
        super().__init__({0, k})
        self.k = k

    def choose(self, batch_size: int) -> int:
        return self.k


def tokens_per_second(
    runner: str,
    choice: LengthChoice,
    cost: Cost,
    acceptance: float,
    *,
    max_k: int,
    num_users: int,
    num_tokens: int,
    num_steps: int,
    seed: int = 0,
) -> float:
    """Of so many users, whose answers have about so many tokens, each draft token accepted after the one before.

    As many steps before are not measured.
    """
    scheduler, rng, names = Scheduler(runner, max_k, num_users), Random(seed), count()
    scheduler.choice = choice
    now = tokens = started = 0.0
    scheduler.clock = lambda: now
    for step in range(2 * num_steps):
        if step == num_steps:
            started, tokens = now, 0.0
        while len(scheduler.requests) < num_users:
            name = str(next(names))
            scheduler.requests[name] = User(name, rng.randint(num_tokens // 2, num_tokens * 3 // 2))
        output = scheduler.schedule()
        sampled = [[7] * (1 + _accepted(rng, acceptance, name, output)) for name in output.num_scheduled_tokens]
        num_rows = sum(output.num_scheduled_tokens.values())
        now += cost(num_users, num_rows, output.num_spec_tokens_to_schedule) * (1 + 0.05 * abs(rng.gauss(0, 1)))
        tokens += sum(map(len, sampled))
        places = {name: place for place, name in enumerate(output.num_scheduled_tokens)}
        scheduler.update_from_output(output, SimpleNamespace(sampled_token_ids=sampled, req_id_to_index=places))
    return tokens / (now - started)


def _accepted(rng: Random, acceptance: float, name: str, output: Any) -> int:
    accepted = 0
    for _ in output.scheduled_spec_decode_tokens.get(name, ()):
        if rng.random() >= acceptance:
            break
        accepted += 1
    return accepted
