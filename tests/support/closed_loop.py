"""A server that is made up, around the real scheduler's mixin: users who each send a request after the other."""

from collections import deque
from collections.abc import Callable
from itertools import count
from random import Random

from fake_scheduler import PROMPT, Scheduler

from vllm_pard.choice import LengthChoice

# Requests, rows of the target, rows of them that read prompts, drafts of each request -> seconds
Cost = Callable[[int, int, int, int], float]


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
    num_away: int = 0,
    seed: int = 0,
) -> float:
    """Of so many users, whose answers have about so many tokens, each draft token accepted after the one before.

    As many steps before are not measured. Users are away for some steps between two requests.
    """
    scheduler, rng, names = Scheduler(runner, max_k=max_k, max_num_reqs=num_users), Random(seed), count()
    scheduler.choice = choice
    now = tokens = started = 0.0
    arriving = deque([num_users, *[0] * num_away])
    scheduler.clock = lambda: now
    for step in range(2 * num_steps):
        if step == num_steps:
            started, tokens = now, 0.0
        for _ in range(arriving.popleft()):
            length = rng.randint(num_tokens // 2, num_tokens * 3 // 2)
            scheduler.add(str(next(names)), num_left=length, has_read=False)
        num_reading = sum(not request.has_read for request in scheduler.requests.values())
        output = scheduler.schedule()
        num_rows, num_drafts = sum(output.num_scheduled_tokens.values()), output.num_spec_tokens_to_schedule
        seconds = cost(len(scheduler.requests), num_rows, PROMPT * num_reading, num_drafts)
        now += seconds * (1 + 0.05 * abs(rng.gauss(0, 1)))
        tokens += scheduler.finish(output, lambda num_drafts: accepted(rng, acceptance, num_drafts))
        arriving.append(num_users - len(scheduler.requests) - sum(arriving))
    return tokens / (now - started)


def accepted(rng: Random, acceptance: float, num_drafts: int) -> int:
    number = 0
    while number < num_drafts and rng.random() < acceptance:
        number += 1
    return number
