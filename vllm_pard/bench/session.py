"""A benchmark from start to end: engines, warm-up, measured runs in alternating order, outputs compared."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.measurement import Cell, Measurement
from vllm_pard.bench.methods import Contender
from vllm_pard.bench.plan import Plan, Step
from vllm_pard.bench.verify import Output, Verification, compare
from vllm_pard.errors import PardError
from vllm_pard.pard2 import Mode


class Engine(Protocol):
    """A started engine that decodes in one way."""

    mode: Mode | None  # in which a PARD-2 draft turned out to run

    def measure(self, requests: list[Request], sampling: Sampling, concurrency: int) -> Measurement: ...

    def outputs(
        self, requests: list[Request], sampling: Sampling, concurrency: int, *, with_likeliest: bool
    ) -> list[Output]: ...

    def close(self, *, keep_log: bool) -> None: ...


@dataclass(kw_only=True)
class Results:
    """Grows while the benchmark runs, so that what is measured is never lost."""

    cells: dict[tuple[str, int], Cell] = field(default_factory=dict)
    verifications: list[Verification] = field(default_factory=list)
    controls: dict[int, Verification] = field(default_factory=dict)  # plain decoding against itself, by concurrency

    def fail(self, label: str, message: str) -> None:
        for cell in self.cells.values():
            if cell.label == label:
                cell.failure = message


@dataclass
class Session:
    """Runs a plan; `on_step(what comes next)` is called before each step, `on_result()` after each new result."""

    plan: Plan
    start: Callable[[Contender], Engine]
    on_step: Callable[[Step], None]
    on_result: Callable[[], None]
    results: Results = field(default_factory=Results)
    _engines: dict[str, Engine] = field(default_factory=dict)
    _plain: dict[int, list[Output]] = field(default_factory=dict)

    def run(self) -> Results:
        for contender in self.plan.contenders:
            for concurrency in self.plan.concurrencies:
                cell = Cell(label=contender.label, concurrency=concurrency)
                self.results.cells[contender.label, concurrency] = cell
        for group in self.plan.groups:
            try:
                for step in self.plan.steps(group):
                    self._take(step)
            finally:
                self._close_all()
        return self.results

    def _take(self, step: Step) -> None:
        """A contender that fails is out; the others go on."""
        self.on_step(step)
        label = step.contender.label
        try:
            if step.kind == "start":
                self._engines[label] = self.start(step.contender)
            elif engine := self._engines.get(label):
                self._ask(engine, step)
        except PardError as error:
            self._drop(step.contender, error)

    def _ask(self, engine: Engine, step: Step) -> None:
        match step.kind:
            case "warm-up":
                requests = self.plan.warm_up_requests(step.concurrency)
                engine.measure(requests, self.plan.sampling, step.concurrency)
            case "run":
                run = engine.measure(self.plan.requests_at(step.concurrency), self.plan.sampling, step.concurrency)
                self.results.cells[step.contender.label, step.concurrency].runs.append(run)
                self.on_result()
            case "comparison":
                self._compare(engine, step)
            case "control":
                self._plain[step.concurrency] = engine.outputs(
                    self.plan.control_requests, self.plan.sampling, step.concurrency, with_likeliest=False
                )
                self._compare_plain()

    def _compare(self, engine: Engine, step: Step) -> None:
        is_plain = step.contender is self.plan.contenders[0]
        requests = self.plan.requests_at(step.concurrency)
        outputs = engine.outputs(requests, self.plan.sampling, step.concurrency, with_likeliest=is_plain)
        if is_plain:
            self._plain[step.concurrency] = outputs
            self._compare_plain()
        elif plain := self._plain.get(step.concurrency):
            verification = compare(step.contender.label, step.concurrency, requests, plain, outputs)
            self.results.verifications.append(verification)
            self.on_result()

    def _compare_plain(self) -> None:
        """Plain decoding with itself at another batch size, wherever both outputs are there."""
        for concurrency in self.plan.concurrencies:
            control = self.plan.control_concurrency(concurrency)
            mine, other = self._plain.get(concurrency), self._plain.get(control or 0)
            if control and mine and other and concurrency not in self.results.controls:
                num = min(len(mine), len(other))  # a smaller batch size may have been asked less
                requests = self.plan.requests_at(concurrency)[:num]
                label = self.plan.contenders[0].label
                self.results.controls[concurrency] = compare(label, control, requests, mine[:num], other[:num])
                self.on_result()

    def _drop(self, contender: Contender, error: PardError) -> None:
        self.results.fail(contender.label, str(error))
        if engine := self._engines.pop(contender.label, None):
            engine.close(keep_log=True)
        self.on_result()

    def _close_all(self) -> None:
        while self._engines:
            _, engine = self._engines.popitem()
            engine.close(keep_log=False)
