"""Order, failures, comparisons: a session on engines of ten lines."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.measurement import Measurement
from vllm_pard.bench.methods import METHODS, Contender
from vllm_pard.bench.plan import Plan, Step
from vllm_pard.bench.session import Engine, Results, Session
from vllm_pard.bench.verify import Output
from vllm_pard.errors import PardError

LABELS = {"none": 0, "pard": 8, "ngram": 4}
CONTENDERS = [
    Contender(name=label, label=label, method=METHODS[label], num_speculative_tokens=k) for label, k in LABELS.items()
]


class FakeEngine:
    """Notes what it is asked; fails when told to. Its outputs are others at one batch size, if told so."""

    parts_at = 0
    mode = None

    def __init__(self, label: str, events: list[str], fail_at: str | None) -> None:
        self.label, self.events, self.fail_at = label, events, fail_at
        self.note("start")

    def measure(self, requests: list[Request], sampling: Sampling, concurrency: int) -> Measurement:
        self.note(f"measure {len(requests)} at {concurrency}")
        return Measurement(num_requests=len(requests), num_tokens=10, seconds=1.0)

    def outputs(
        self, requests: list[Request], sampling: Sampling, concurrency: int, *, with_likeliest: bool
    ) -> list[Output]:
        self.note(f"outputs of {len(requests)} at {concurrency}, likeliest {with_likeliest}")
        last = 4 if self.label == "ngram" or concurrency == self.parts_at else 3
        likeliest = [{1: -0.1}, {2: -0.1}, {3: -0.5, 4: -1.0}] if with_likeliest else None
        return [Output(token_ids=[1, 2, last], likeliest=likeliest) for _ in requests]

    def close(self, *, keep_log: bool) -> None:
        self.events.append(f"{self.label}: close, keep {keep_log}")

    def note(self, event: str) -> None:
        self.events.append(f"{self.label}: {event}")
        if event == self.fail_at:
            raise PardError(f"{self.label} is out of memory")


@pytest.fixture
def plan(requests: list[Request]) -> Plan:
    return Plan(
        contenders=CONTENDERS,
        requests=requests,
        sampling=Sampling(max_tokens=3),
        concurrencies=[1],
        num_runs=2,
        num_warmup=2,
        requests_per_user=None,
        together=True,
        verify=False,
    )


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def run(events: list[str]) -> Callable[..., Results]:
    def run(plan: Plan, **fail_at: str) -> Results:
        def start(contender: Contender) -> Engine:
            return FakeEngine(contender.label, events, fail_at.get(contender.label))

        steps: list[Step] = []
        session = Session(plan, start, steps.append, lambda: events.append("saved"))
        results = session.run()
        assert steps == plan.all_steps
        return results

    return run


def test_requests_by_concurrency(plan: Plan, events: list[str], run: Any) -> None:
    run(replace(plan, concurrencies=[1, 3], contenders=CONTENDERS[:1], requests_per_user=1, num_runs=1, verify=True))
    assert [event for event in events if "measure" in event] == [
        *("none: measure 1 at 1", "none: measure 1 at 1", "none: measure 3 at 3", "none: measure 3 at 3"),
    ]


def order(events: list[str], what: str) -> list[str]:
    return [event.partition(":")[0] for event in events if what in event]


def test_runs_alternate_and_every_other_round_is_reversed(plan: Plan, events: list[str], run: Any) -> None:
    results = run(plan)
    assert order(events, "start") == ["none", "pard", "ngram"]
    assert order(events, "measure 2 at 1") == ["none", "pard", "ngram"]  # the warm-up
    assert order(events, "measure 4 at 1") == ["none", "pard", "ngram", "ngram", "pard", "none"]
    assert [len(cell.runs) for cell in results.cells.values()] == [2, 2, 2]
    assert events.count("saved") == 6  # after each run
    assert sorted(order(events, "close, keep False")) == ["ngram", "none", "pard"]


def test_in_turn_only_one_engine_is_there(plan: Plan, events: list[str], run: Any) -> None:
    run(replace(plan, together=False))
    running = 0
    for event in events:
        running += event.endswith(": start")
        running -= "close" in event
        assert running in (0, 1)
    assert order(events, "measure 4 at 1") == ["none", "none", "pard", "pard", "ngram", "ngram"]


def test_every_concurrency_is_warmed_up_with_as_many_requests(plan: Plan, events: list[str], run: Any) -> None:
    results = run(replace(plan, concurrencies=[1, 3], contenders=CONTENDERS[:1]))
    assert [event for event in events if "measure" in event] == [
        *("none: measure 2 at 1", "none: measure 4 at 1", "none: measure 4 at 1"),
        *("none: measure 3 at 3", "none: measure 4 at 3", "none: measure 4 at 3"),
    ]
    assert list(results.cells) == [("none", 1), ("none", 3)]


@pytest.mark.parametrize(
    ("fail_at", "num_runs"),
    [("start", 0), ("measure 2 at 1", 0), ("measure 4 at 1", 0), ("outputs of 4 at 1, likeliest False", 2)],
)
def test_one_that_fails_is_out_and_the_rest_goes_on(
    fail_at: str, num_runs: int, plan: Plan, events: list[str], run: Any
) -> None:
    results = run(replace(plan, verify=True), pard=fail_at)
    failed = results.cells["pard", 1]
    assert failed.failure == "pard is out of memory"
    assert len(failed.runs) == num_runs
    assert [len(results.cells[label, 1].runs) for label in ("none", "ngram")] == [2, 2]
    assert ("pard: close, keep True" in events) == (fail_at != "start")
    assert [verification.label for verification in results.verifications] == ["ngram"]


def test_outputs_are_compared_with_the_first(plan: Plan, run: Any, events: list[str]) -> None:
    results = run(replace(plan, verify=True))
    pard, ngram = results.verifications
    assert (pard.label, pard.num_equal) == ("pard", 4)
    assert (ngram.label, ngram.num_equal) == ("ngram", 0)
    assert ngram.divergences[0].gap == 0.5
    assert order(events, "likeliest True") == ["none"]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("concurrencies", "controls"),
    [([1], {1: 4}), ([2], {2: 1}), ([1, 3], {1: 3, 3: 1}), ([1, 2, 3], {1: 2, 2: 1, 3: 1})],
)
def test_plain_decoding_is_compared_with_itself_at_another_batch_size(
    concurrencies: list[int], controls: dict[int, int], together: bool, plan: Plan, run: Any, events: list[str]
) -> None:
    plan = replace(plan, concurrencies=concurrencies, together=together, verify=True)
    results = run(plan)
    assert {here: control.concurrency for here, control in results.controls.items()} == controls
    assert {(control.label, control.num_requests) for control in results.controls.values()} == {("none", 4)}
    assert plan.max_concurrency == max(*concurrencies, *controls.values())
    collected = [event for event in events if event.startswith("none: outputs")]
    assert len(collected) == len({*concurrencies, *controls.values()})  # what is measured anyway is not asked again


def test_where_plain_decoding_parts_from_itself(plan: Plan, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "parts_at", 4)
    (control,) = run(replace(plan, verify=True)).controls.values()
    assert (control.num_equal, control.widest_gap) == (0, 0.5)


def test_the_control_of_a_few_requests_a_user(plan: Plan, run: Any) -> None:
    assert run(replace(plan, verify=True, requests_per_user=1)).controls[1].num_requests == 1
    assert run(replace(plan, verify=True, requests_per_user=1, concurrencies=[1, 3])).controls[3].num_requests == 1


def test_a_single_request_has_no_control(plan: Plan, run: Any) -> None:
    assert run(replace(plan, verify=True, requests=plan.requests[:1])).controls == {}


def test_without_plain_outputs_nothing_is_compared(plan: Plan, run: Any) -> None:
    assert run(replace(plan, verify=True), none="outputs of 4 at 1, likeliest True").verifications == []


def test_an_interruption_keeps_results_and_closes_engines(plan: Plan, events: list[str]) -> None:
    def interrupt() -> None:
        events.append("saved")
        if events.count("saved") == 3:
            raise KeyboardInterrupt

    results = Results()
    session = Session(
        plan, lambda contender: FakeEngine(contender.label, events, None), lambda step: None, interrupt, results
    )
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert sum(len(cell.runs) for cell in results.cells.values()) == 3
    assert sorted(order(events, "close, keep False")) == ["ngram", "none", "pard"]
