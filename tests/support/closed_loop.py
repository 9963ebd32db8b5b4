"""A server that is made up, around the real scheduler's mixin: users who each send a request after the other."""

from collections.abc import Callable
from itertools import count
from random import Random

from fake_scheduler import Scheduler

from vllm_pard.choice import LengthChoice

Cost = Callable[[int, int, int], float]  # requests, rows of the target, drafts of each request -> seconds


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
    scheduler, rng, names = Scheduler(runner, max_k=max_k, max_num_reqs=num_users), Random(seed), count()
    scheduler.choice = choice
    now = tokens = started = 0.0
    scheduler.clock = lambda: now
    for step in range(2 * num_steps):
        if step == num_steps:
            started, tokens = now, 0.0
        while len(scheduler.requests) < num_users:
            length = rng.randint(num_tokens // 2, num_tokens * 3 // 2)
            scheduler.add(str(next(names)), num_left=length, has_read=False)
        output = scheduler.schedule()
        num_rows = sum(output.num_scheduled_tokens.values())
        now += cost(num_users, num_rows, output.num_spec_tokens_to_schedule) * (1 + 0.05 * abs(rng.gauss(0, 1)))
        tokens += scheduler.finish(output, lambda num_drafts: accepted(rng, acceptance, num_drafts))
    return tokens / (now - started)


def accepted(rng: Random, acceptance: float, num_drafts: int) -> int:
    number = 0
    while number < num_drafts and rng.random() < acceptance:
        number += 1
    return number
