"""`vllm-pard doctor TARGET DRAFT --measure`: does this draft pay on this machine, with which K, at which batch size?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from vllm_pard.cli.engine.client import EngineProcess
from vllm_pard.cli.progress import Progress
from vllm_pard.errors import PardError
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.pard2 import WantedMode
from vllm_pard.prompts import Prompt
from vllm_pard.verdict import StepCosts, Verdict, judge

MAX_TOKENS = 64
FULL_ENOUGH = 0.75  # steps of so large a share of the batch are still steps of the batch
FRACTION_OF_K = 4  # a second K, measured where the draft's part of a step is not known: between them is interpolated

PROMPTS = (
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A train leaves at 14:05 and arrives at 17:50. How long does it travel? Show your steps.",
    "Translate into French: The library opens at nine and closes at six.",
    "List five things to check before renting a flat.",
    "Summarise what photosynthesis does, for a child of ten.",
    "Write an SQL query for the ten customers with the highest total of orders.",
    "What is the difference between a process and a thread?",
    "Write a polite e-mail that moves a meeting from Tuesday to Thursday.",
    "A shop sells pens at 3 for 2 euros. What do 15 pens cost? Explain.",
    "Give a recipe for a simple vegetable soup, in numbered steps.",
    "Correct this sentence and say why: He don't knows where is the station.",
    "Write a regular expression that matches dates such as 2024-05-31, and explain it.",
    "Which planets of the solar system have rings? Answer in a table.",
    "Write the first paragraph of a short story that begins in a lighthouse.",
    "What does the command `tar -xzf archive.tar.gz` do, flag by flag?",
)


class MeasureError(PardError):
    """The pair can't be measured."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What is measured, and how."""

    target: str
    draft: str
    mask_token_id: int
    mode: WantedMode
    num_speculative_tokens: int
    prompts: Sequence[Prompt]
    batch_sizes: Sequence[int]
    options: dict[str, Any]  # of vLLM's LLM class


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it. `costs` by batch size, ascending."""

    stats: AcceptanceStats  # with the largest K
    costs: list[StepCosts]
    verdicts: list[Verdict]  # of each of `costs`
    about: dict[str, Any]  # what the engine with the largest K says of itself


def measure(pair: Pair, *, verbose: bool = False) -> Measured:
    """Run vLLM without drafts and with K, one engine after the other, and judge every batch size.

    Where an engine can't tell what of a step is the draft's, one with a smaller K shows what each draft token costs.
    """
    k = pair.num_speculative_tokens
    runs = _Runs(pair)
    with Progress(2 * runs.parts_of_an_engine, lambda: runs.in_words) as progress:
        runs.of_engine(0, progress, verbose=verbose)
        runs.of_engine(k, progress, verbose=verbose)
        if k > 1 and len(runs.draft_ms) < len(pair.batch_sizes):
            runs.draft_ms.clear()
            runs.of_engine(max(1, k // FRACTION_OF_K), progress, verbose=verbose)
    costs = [
        StepCosts(
            batch_size=size,
            plain_ms=ms[0],
            step_ms={number: ms[number] for number in sorted(ms) if number},
            draft_ms=runs.draft_ms.get(size),
        )
        for size, ms in sorted(runs.step_ms.items())
    ]
    verdicts = [judge(runs.stats, costs, num_speculative_tokens=k, batch_size=cost.batch_size) for cost in costs]
    return Measured(stats=runs.stats, costs=costs, verdicts=verdicts, about=runs.about)


class _Runs:
    """One engine after the other; what they took and what became of the drafts."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.step_ms: dict[int, dict[int, float]] = {size: {} for size in pair.batch_sizes}  # by batch size and K
        self.draft_ms: dict[int, float] = {}  # by batch size, with the full K
        self.stats = AcceptanceStats()  # with the full K
        self.about: dict[str, Any] = {}
        self.in_words = ""
        self._num_parts = 0

    @property
    def parts_of_an_engine(self) -> int:
        return 1 + len(self._pair.batch_sizes)

    def of_engine(self, k: int, progress: Progress, *, verbose: bool) -> None:
        """Every batch size on an engine that drafts k tokens."""
        what = f"vLLM {f'with K={k}' if k else 'without drafts'}"
        self._begin(f"starting {what}", progress)
        with EngineProcess(_engine_options(self._pair, k), verbose=verbose) as engine:
            about = engine.wait_until_ready()
            if k == self._pair.num_speculative_tokens:
                self.about = about
            for size in self._pair.batch_sizes:
                self._begin(f"{what}, {size} at a time", progress)
                self._take(_run(engine, self._pair.prompts, size), size, k)

    def _begin(self, what: str, progress: Progress) -> None:
        self.in_words = what
        progress.show(self._num_parts)
        self._num_parts += 1

    def _take(self, run: "_Run", size: int, k: int) -> None:
        self.step_ms[size][k] = run.step_ms
        if k == self._pair.num_speculative_tokens:
            self.stats += run.stats
            if run.draft_ms is not None:
                self.draft_ms[size] = run.draft_ms


@dataclass(frozen=True, kw_only=True)
class _Run:
    step_ms: float  # of the full batch
    draft_ms: float | None  # of it, where the engine could tell
    stats: AcceptanceStats


def recommended(measured: Measured, *, can_schedule: bool) -> dict[str, Any] | None:
    """The speculative config to take; None where plain decoding is the fastest.

    `can_schedule`: K may follow the batch size (model runner V2).
    """
    best = [verdict.best.num_speculative_tokens if verdict.best else 0 for verdict in measured.verdicts]
    if not any(best):
        return None
    if len(set(best)) == 1 or not can_schedule:
        return {"method": "pard", "num_speculative_tokens": next(k for k in reversed(best) if k)}
    sizes = [cost.batch_size for cost in measured.costs]
    starts = [1, *(size + 1 for size in sizes[:-1])]
    schedule = [[start, size, k] for start, size, k in zip(starts, sizes, best, strict=True)]
    return {
        "method": "pard",
        "num_speculative_tokens": max(best),
        "num_speculative_tokens_per_batch_size": schedule,
    }


def _engine_options(pair: Pair, k: int) -> dict[str, Any]:
    fixed = {
        "model": pair.target,
        "max_num_seqs": max(pair.batch_sizes),
        "enable_prefix_caching": False,  # or the second batch would skip its prompts
    }
    if k:
        fixed["speculative_config"] = {
            "method": "pard",
            "model": pair.draft,
            "mask_token_id": pair.mask_token_id,
            "mode": pair.mode,
            "num_speculative_tokens": k,
        }
    return fixed | pair.options


def _run(engine: EngineProcess, prompts: Sequence[Prompt], batch_size: int) -> _Run:
    """Answer as many prompts at once."""
    requests = list(_requests(prompts, batch_size))
    draft_ms = None
    for event in engine.generate(requests, {"temperature": 0.0, "max_tokens": MAX_TOKENS}, find_costs=True):
        match event["event"]:
            case "refused":
                raise MeasureError(f"the prompt {event['id']!r} was refused: {event['message']}; give other --prompts")
            case "costs" if event["batch_size"] >= FULL_ENOUGH * batch_size:
                draft_ms = event["draft_ms"]
            case "done":
                steps = {int(size): found["ms"] for size, found in event["steps"].items()}
                stats = AcceptanceStats(**event["stats"])
    fullest = max(steps, default=0)
    if fullest < FULL_ENOUGH * batch_size:
        raise MeasureError(
            f"the answers end too early to measure {batch_size} requests at a time; give --prompts with longer "
            "answers, or smaller --batch-sizes"
        )
    return _Run(step_ms=steps[fullest], draft_ms=draft_ms, stats=stats)


def _requests(prompts: Sequence[Prompt], number: int) -> Iterator[dict[str, Any]]:
    for place, prompt in enumerate(islice(cycle(prompts), number)):
        yield {"id": f"{place}-{prompt.id}", "text": prompt.text, "messages": prompt.messages}
