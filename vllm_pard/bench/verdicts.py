"""Whether a method pays, told from measured speeds.

The verdict is taken from costs of steps. These are effective ones: all of a run's time over its steps, prompts
included, so that the ratio of two costs gives the measured speed-up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import sqrt
from statistics import median, stdev
from typing import Any

from vllm_pard.bench.measurement import Cell
from vllm_pard.bench.methods import Contender
from vllm_pard.verdict import NOISE, NUM_STANDARD_ERRORS, StepCosts, Verdict, judge

MEDIAN_OVER_MEAN = 1.25  # the standard error of a median over that of a mean, for normal noise: sqrt(pi / 2)


def step_ms(tokens_per_second: float, acceptance_length: float, concurrency: int) -> float:
    """Effective milliseconds of one step of `concurrency` requests."""
    return 1000 * concurrency * acceptance_length / tokens_per_second


def noise(*runs: Sequence[float]) -> float:
    """How far the ratio of two medians of speeds may be off, relative; a single run does not tell."""
    errors = [
        MEDIAN_OVER_MEAN * stdev(speeds) / sqrt(len(speeds)) / median(speeds) for speeds in runs if len(speeds) > 1
    ]
    return max(NOISE, NUM_STANDARD_ERRORS * sqrt(sum(error**2 for error in errors)))


def verdicts(contenders: Sequence[Contender], cells: Mapping[tuple[str, int], Cell]) -> list[tuple[Cell, Verdict]]:
    """Of each contender that drafts, at each concurrency; the first contender is plain decoding, or there are none."""
    if not contenders[0].is_plain:
        return []
    judged = []
    for contender in contenders:
        if contender.is_plain:
            continue
        costs = _costs(contender, contenders, cells)
        for cost in costs:
            cell = cells[contender.label, cost.batch_size]
            verdict = judge(
                cell.stats,
                costs,
                num_speculative_tokens=contender.num_speculative_tokens,
                batch_size=cost.batch_size,
                name=contender.title,
            )
            judged.append((cell, verdict))
    return judged


def as_record(cell: Cell, verdict: Verdict) -> dict[str, Any]:
    return {"method": cell.label, "concurrency": cell.concurrency} | asdict(verdict)


def _costs(
    contender: Contender, contenders: Sequence[Contender], cells: Mapping[tuple[str, int], Cell]
) -> list[StepCosts]:
    """At each concurrency at which both are measured; other K of the same method and draft help to find the best."""
    found = []
    family = [other for other in contenders if other.title == contender.title and other is not contender]
    for (label, concurrency), cell in cells.items():
        plain = cells[contenders[0].label, concurrency]
        if label != contender.label or not cell.runs or not plain.runs:
            continue
        # The contender's own cost last: it stays where two have the same K.
        measured = [(other, cells[other.label, concurrency]) for other in (*family, contender)]
        found.append(
            StepCosts(
                batch_size=concurrency,
                plain_ms=step_ms(plain.tokens_per_second, 1.0, concurrency),
                step_ms={
                    other.num_speculative_tokens: step_ms(
                        its.tokens_per_second, its.stats.mean_acceptance_length, concurrency
                    )
                    for other, its in measured
                    if its.runs
                },
                noise=noise(*([run.tokens_per_second for run in one.runs] for one in (cell, plain))),
            )
        )
    return found
