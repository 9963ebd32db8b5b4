"""What was measured, as a table on the terminal and as a file."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vllm_pard.bench.judgement import Judgement
from vllm_pard.bench.measurement import Cell
from vllm_pard.bench.methods import Contender
from vllm_pard.bench.session import Results
from vllm_pard.bench.verdicts import as_record, verdicts
from vllm_pard.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Report:
    """Results with their conditions. The first contender is the baseline.

    `roofs` holds, by label and concurrency, tokens/s of the memory roof at acceptance length 1.
    """

    conditions: dict[str, Any]
    results: Results
    contenders: list[Contender]
    roofs: dict[tuple[str, int], float | None]
    num_gpus: int

    def speed_up(self, cell: Cell) -> float | None:
        """Against the baseline at the same concurrency."""
        plain = self.results.cells.get((self.contenders[0].label, cell.concurrency))
        return cell.tokens_per_second / plain.tokens_per_second if plain and plain.runs and cell.runs else None

    def roof_share(self, cell: Cell) -> float | None:
        roof = self.roofs.get((cell.label, cell.concurrency))
        if roof is None or not cell.runs:
            return None
        return cell.tokens_per_second / (roof * cell.stats.mean_acceptance_length)

    @property
    def judgements(self) -> list[Judgement]:
        """Of all outputs compared so far."""
        return [
            Judgement(
                verification=verification,
                control=self.results.controls.get(verification.concurrency),
                dtype=self.conditions["weight_dtype"],
            )
            for verification in self.results.verifications
        ]

    def as_record(self, *, complete: bool) -> dict[str, Any]:
        return {
            "complete": complete,
            "conditions": self.conditions,
            "results": [self._cell_record(cell) for cell in self.results.cells.values()],
            "verification": [judgement.as_record() for judgement in self.judgements],
            "verdicts": [as_record(cell, verdict) for cell, verdict in verdicts(self.contenders, self.results.cells)],
        }

    def _cell_record(self, cell: Cell) -> dict[str, Any]:
        record = cell.as_record() | {"speed_up": self.speed_up(cell), "roof_share": self.roof_share(cell)}
        if self.num_gpus and cell.runs:
            record["tokens_per_second_per_gpu"] = cell.tokens_per_second / self.num_gpus
        return record


def write_report(path: Path, report: Report, *, complete: bool) -> None:
    write_whole(path, json.dumps(report.as_record(complete=complete), indent=2) + "\n")


def print_report(console: Console, report: Report) -> None:
    for concurrency in dict.fromkeys(cell.concurrency for cell in report.results.cells.values()):
        cells = [cell for cell in report.results.cells.values() if cell.concurrency == concurrency and cell.runs]
        if cells:
            num_runs = max(len(cell.runs) for cell in cells)
            runs = f", medians of {num_runs} runs" if num_runs > 1 else ""
            console.print(f"[bold]{concurrency} at a time[/bold]{runs}")
            console.print(table(report, cells))
            console.print()
    for line in notes(report):
        console.print(line, markup=False, soft_wrap=True)


def table(report: Report, cells: list[Cell]) -> Table:
    """A line for each method; columns in which no method has a value are left out."""
    columns = [[header, *(show(report, cell) for cell in cells)] for header, show in COLUMNS]
    columns = [column for column in columns if any(column[1:])]
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header, *_ in columns:
        drawn.add_column(header, justify="left" if header == "method" else "right")
    for row in zip(*(column[1:] for column in columns), strict=True):
        drawn.add_row(*row)
    return drawn


def notes(report: Report) -> Iterator[str]:
    """Acceptance by position once a method, what failed, outputs compared, and whether drafting pays."""
    for label in dict.fromkeys(cell.label for cell in report.results.cells.values()):
        cells = [cell for cell in report.results.cells.values() if cell.label == label]
        if stats := next((cell.stats for cell in cells if cell.stats.num_drafts), None):
            shares = " ".join(f"{share:.2f}" for share in stats.acceptance_by_position)
            yield f"{label}: accepted by position {shares}"
        if failure := next((cell.failure for cell in cells if cell.failure), None):
            yield f"{label} FAILED: {failure}"
    for judgement in report.judgements:
        compared = judgement.verification
        yield f"{compared.label}, {compared.concurrency} at a time: {judgement.in_words}"
    for _, verdict in verdicts(report.contenders, report.results.cells):
        yield verdict.sentence


def spread(cell: Cell) -> str:
    lowest, highest = cell.spread
    return f"{lowest:.1f}-{highest:.1f}" if len(cell.runs) > 1 else ""


def latency(cell: Cell, name: str) -> str:
    middle, high = cell.median_of(f"{name}_p50_ms"), cell.median_of(f"{name}_p99_ms")
    return "" if middle is None else f"{middle:.1f}, {high:.1f}"


def number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


COLUMNS: tuple[tuple[str, Callable[[Report, Cell], str]], ...] = (
    ("method", lambda report, cell: cell.label),
    ("tokens/s", lambda report, cell: f"{cell.tokens_per_second:.1f}"),
    ("low-high", lambda report, cell: spread(cell)),
    ("speed-up", lambda report, cell: number(report.speed_up(cell), ".2f", "x")),
    ("acceptance", lambda report, cell: f"{cell.stats.mean_acceptance_length:.2f}"),
    ("per user", lambda report, cell: f"{cell.tokens_per_second_per_user:.1f}" if cell.concurrency > 1 else ""),
    ("step ms, p99", lambda report, cell: latency(cell, "itl")),
    ("TTFT ms, p99", lambda report, cell: latency(cell, "ttft")),
    ("of roof", lambda report, cell: number(report.roof_share(cell), ".0%")),
)
