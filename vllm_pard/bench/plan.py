"""What a benchmark will do, step by step, before it does anything."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.methods import Contender

StepKind = Literal["start", "warm-up", "run", "comparison", "control"]
MAX_CONTROL = 4


@dataclass(frozen=True, kw_only=True)
class Step:
    """One unit of progress: an engine's start, or requests sent to it."""

    kind: StepKind
    contender: Contender
    in_words: str
    concurrency: int = 0
    num_requests: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared, on what, how often. The first contender is what the others are compared with."""

    contenders: list[Contender]
    requests: list[Request]
    sampling: Sampling
    concurrencies: list[int]
    num_runs: int
    num_warmup: int  # requests before each contender's first run at a concurrency
    requests_per_user: int | None  # at concurrency c, only the first c times as many requests; None: all
    together: bool  # all engines at once, each run in turn; else one after the other, each with all its runs
    verify: bool

    def requests_at(self, concurrency: int) -> list[Request]:
        return (
            self.requests if self.requests_per_user is None else self.requests[: concurrency * self.requests_per_user]
        )

    def warm_up_requests(self, concurrency: int) -> list[Request]:
        return self.requests_at(concurrency)[: max(self.num_warmup, concurrency)]

    def control_concurrency(self, concurrency: int) -> int | None:
        """The other batch size at which plain decoding is compared with itself; None if there are too few requests."""
        others = [other for other in self.concurrencies if other != concurrency]
        if others:
            return others[0]
        other = 1 if concurrency > 1 else min(MAX_CONTROL, len(self.requests))
        return other if other != concurrency else None

    def control_requests(self, concurrency: int) -> list[Request]:
        """Those of this concurrency first; enough to fill the other batch size."""
        return self.requests_at(max(concurrency, self.control_concurrency(concurrency) or 0))

    @property
    def max_concurrency(self) -> int:
        """Of all that is sent, the control's requests included."""
        controls = [self.control_concurrency(concurrency) or 1 for concurrency in self.concurrencies]
        return max(*self.concurrencies, *(controls if self.verify else (1,)))

    @property
    def groups(self) -> list[list[Contender]]:
        """Contenders whose engines run at the same time."""
        return [self.contenders] if self.together else [[one] for one in self.contenders]

    @property
    def all_steps(self) -> list[Step]:
        return [step for group in self.groups for step in self.steps(group)]

    def steps(self, group: list[Contender]) -> Iterator[Step]:
        """In order."""
        for contender in group:
            yield Step(kind="start", contender=contender, in_words=f"starting {contender.label}")
        for concurrency in self.concurrencies:
            for contender in group:
                num_requests = len(self.warm_up_requests(concurrency))
                yield _step("warm-up", "warming up", contender, concurrency, num_requests)
            num_requests = len(self.requests_at(concurrency))
            for number in range(self.num_runs):
                # Every other round in reverse, so that none always follows the same one.
                for contender in group[::-1] if number % 2 else group:
                    what = f"run {number + 1} of {self.num_runs}:"
                    yield _step("run", what, contender, concurrency, num_requests)
            if self.verify:
                for contender in group:
                    yield _step("comparison", "comparing the outputs of", contender, concurrency, num_requests)
                yield from self._control_steps(group[0], concurrency)

    def _control_steps(self, contender: Contender, concurrency: int) -> Iterator[Step]:
        """One if the control is not among the concurrencies that are compared anyway."""
        control = self.control_concurrency(concurrency)
        if contender is self.contenders[0] and control is not None and control not in self.concurrencies:
            num_requests = len(self.control_requests(concurrency))
            yield Step(
                kind="control",
                contender=contender,
                concurrency=concurrency,
                num_requests=num_requests,
                in_words=f"comparing {contender.label} with itself, {control} at a time",
            )


def _step(kind: StepKind, what: str, contender: Contender, concurrency: int, num_requests: int) -> Step:
    return Step(
        kind=kind,
        contender=contender,
        concurrency=concurrency,
        num_requests=num_requests,
        in_words=f"{what} {contender.label}, {concurrency} at a time",
    )
