"""A benchmark from start to end: engines, warm-up, measured runs in alternating order, outputs compared."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.measurement import Cell, Measurement
from vllm_pard.bench.methods import Contender
from vllm_pard.bench.verify import Output, Verification, compare
from vllm_pard.errors import PardError


class Engine(Protocol):
    """A started engine that decodes in one way."""

    def measure(self, requests: list[Request], sampling: Sampling, concurrency: int) -> Measurement: ...

    def outputs(
        self, requests: list[Request], sampling: Sampling, concurrency: int, *, with_gaps: bool
    ) -> list[Output]: ...

    def close(self, *, keep_log: bool) -> None: ...


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

    @property
    def num_steps(self) -> int:
        """Progress of one unit each: a start, a warm-up, a run, a comparison."""
        per_concurrency = 1 + self.num_runs + self.verify
        return len(self.contenders) * (1 + len(self.concurrencies) * per_concurrency)


@dataclass(kw_only=True)
class Results:
    """Grows while the benchmark runs, so that what is measured is never lost."""

    cells: dict[tuple[str, int], Cell] = field(default_factory=dict)
    verifications: list[Verification] = field(default_factory=list)

    def fail(self, label: str, message: str) -> None:
        for cell in self.cells.values():
            if cell.label == label:
                cell.failure = message


@dataclass
class Session:
    """Runs a plan; `on_step(what comes next)` is called before each step, `on_result()` after each new result."""

    plan: Plan
    start: Callable[[Contender], Engine]
    on_step: Callable[[str], None]
    on_result: Callable[[], None]
    results: Results = field(default_factory=Results)
    _engines: dict[str, Engine] = field(default_factory=dict)
    _plain: dict[int, list[Output]] = field(default_factory=dict)

    def run(self) -> Results:
        for contender in self.plan.contenders:
            for concurrency in self.plan.concurrencies:
                cell = Cell(label=contender.label, concurrency=concurrency)
                self.results.cells[contender.label, concurrency] = cell
        groups = [self.plan.contenders] if self.plan.together else [[one] for one in self.plan.contenders]
        for group in groups:
            try:
                self._run_group(group)
            finally:
                self._close_all()
        return self.results

    def _run_group(self, group: list[Contender]) -> None:
        for contender in group:
            with self._surviving(contender, f"starting {contender.label}"):
                self._engines[contender.label] = self.start(contender)
        for concurrency in self.plan.concurrencies:
            self._for_each(group, "warming up", concurrency, self._warm_up)
            for number in range(self.plan.num_runs):
                # Every other round in reverse, so that none always follows the same one.
                order = group[::-1] if number % 2 else group
                self._for_each(order, f"run {number + 1} of {self.plan.num_runs}:", concurrency, self._measure)
            if self.plan.verify:
                self._for_each(group, "comparing the outputs of", concurrency, self._verify)

    def _for_each(
        self, group: list[Contender], what: str, concurrency: int, do: Callable[[Contender, Engine, int], None]
    ) -> None:
        for contender in group:
            with self._surviving(contender, f"{what} {contender.label}, {concurrency} at a time"):
                if engine := self._engines.get(contender.label):
                    do(contender, engine, concurrency)

    def _warm_up(self, contender: Contender, engine: Engine, concurrency: int) -> None:
        requests = self.plan.requests_at(concurrency)[: max(self.plan.num_warmup, concurrency)]
        engine.measure(requests, self.plan.sampling, concurrency)

    def _measure(self, contender: Contender, engine: Engine, concurrency: int) -> None:
        run = engine.measure(self.plan.requests_at(concurrency), self.plan.sampling, concurrency)
        self.results.cells[contender.label, concurrency].runs.append(run)
        self.on_result()

    def _verify(self, contender: Contender, engine: Engine, concurrency: int) -> None:
        is_plain = contender is self.plan.contenders[0]
        requests = self.plan.requests_at(concurrency)
        outputs = engine.outputs(requests, self.plan.sampling, concurrency, with_gaps=is_plain)
        if is_plain:
            self._plain[concurrency] = outputs
        elif plain := self._plain.get(concurrency):
            verification = compare(contender.label, concurrency, requests, plain, outputs)
            self.results.verifications.append(verification)
            self.on_result()

    @contextmanager
    def _surviving(self, contender: Contender, step: str) -> Iterator[None]:
        self.on_step(step)
        try:
            yield
        except PardError as error:
            self._drop(contender, error)

    def _drop(self, contender: Contender, error: PardError) -> None:
        """A contender that failed is out; the others go on."""
        self.results.fail(contender.label, str(error))
        if engine := self._engines.pop(contender.label, None):
            engine.close(keep_log=True)
        self.on_result()

    def _close_all(self) -> None:
        while self._engines:
            _, engine = self._engines.popitem()
            engine.close(keep_log=False)
