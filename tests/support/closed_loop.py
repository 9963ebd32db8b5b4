"""A server that is made up, around the real scheduler's mixin: users who come and go, and jobs."""

from collections import deque
from collections.abc import Callable, Iterable
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


class Server:
    """Steps whose time is made up: 5% more than they cost, more or less."""

    def __init__(
        self,
        runner: str,
        choice: LengthChoice,
        cost: Cost,
        acceptance: float,
        *,
        max_num_reqs: int,
        max_k: int,
        seed: int,
    ) -> None:
        """Each draft token is accepted with this probability after the one before."""
        self.rng, self.names = Random(seed), count()
        self.scheduler = Scheduler(runner, max_k=max_k, max_num_reqs=max_num_reqs)
        self.scheduler.choice = choice
        self.scheduler.clock = lambda: self.seconds
        self.cost, self.acceptance = cost, acceptance
        self.seconds = self.num_tokens = 0.0

    @property
    def num_requests(self) -> int:
        return len(self.scheduler.requests)

    def add(self, num_tokens: int) -> None:
        """A request for about so many tokens."""
        length = self.rng.randint(num_tokens // 2, num_tokens * 3 // 2)
        self.scheduler.add(str(next(self.names)), num_left=length, has_read=False)

    def step(self) -> None:
        num_reading = sum(not request.has_read for request in self.scheduler.requests.values())
        output = self.scheduler.schedule()
        num_rows, num_drafts = sum(output.num_scheduled_tokens.values()), output.num_spec_tokens_to_schedule
        seconds = self.cost(self.num_requests, num_rows, PROMPT * num_reading, num_drafts)
        self.seconds += seconds * (1 + 0.05 * abs(self.rng.gauss(0, 1)))
        self.num_tokens += self.scheduler.finish(output, lambda num: accepted(self.rng, self.acceptance, num))


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
    """Of so many users, whose answers have about so many tokens; as many steps before are not measured.

    Users are away for some steps between two requests.
    """
    server = Server(runner, choice, cost, acceptance, max_num_reqs=num_users, max_k=max_k, seed=seed)
    arriving = deque([num_users, *[0] * num_away])
    before = 0.0, 0.0
    for step in range(2 * num_steps):
        if step == num_steps:
            before = server.num_tokens, server.seconds
        for _ in range(arriving.popleft()):
            server.add(num_tokens)
        server.step()
        arriving.append(num_users - server.num_requests - sum(arriving))
    return (server.num_tokens - before[0]) / (server.seconds - before[1])


def job_speeds(
    runner: str,
    choice: LengthChoice,
    cost: Cost,
    acceptance: float,
    *,
    max_k: int,
    jobs: Iterable[int],
    num_at_once: int,
    num_tokens: int,
    seed: int = 0,
) -> list[float]:
    """Tokens a second of jobs of so many requests, which follow one another; all of a job's are there at its start."""
    server = Server(runner, choice, cost, acceptance, max_num_reqs=num_at_once, max_k=max_k, seed=seed)
    speeds = []
    for waiting in jobs:
        before = server.num_tokens, server.seconds
        while waiting or server.num_requests:
            while waiting and server.num_requests < num_at_once:
                server.add(num_tokens)
                waiting -= 1
            server.step()
        speeds.append((server.num_tokens - before[0]) / (server.seconds - before[1]))
    return speeds


def accepted(rng: Random, acceptance: float, num_drafts: int) -> int:
    number = 0
    while number < num_drafts and rng.random() < acceptance:
        number += 1
    return number
