"""The result of `vllm-pard evaluate`: a table, a JSON file, a picture."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vllm_pard.bench.pictures import Picture, Point
from vllm_pard.bench.plots import check_matplotlib, draw
from vllm_pard.cli.evaluation.measure import Evaluation
from vllm_pard.files import write_whole

MAX_POSITIONS = 8  # columns of the table


def show(evaluation: Evaluation, output: Path | None, plot: Path | None) -> None:
    """Print the table, and write the files that are asked for."""
    if output is not None:
        write_whole(output, json.dumps(asdict(evaluation), indent=2) + "\n")
    console = Console(highlight=False)
    console.print(table(evaluation))
    if evaluation.conditions["mode"] is not None:
        console.print(f"mode: {evaluation.conditions['mode']}", markup=False, soft_wrap=True)
    if plot is not None:
        check_matplotlib()
        draw(picture(evaluation), plot)


def table(evaluation: Evaluation) -> Table:
    """Acceptance length, and the share of drafts whose token at each position was accepted."""
    rows = evaluation.rows
    num_positions = min(max(row["num_speculative_tokens"] for row in rows), MAX_POSITIONS)
    has_modes = len({row["mode"] for row in rows}) > 1
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("task", *(["mode"] if has_modes else [])):
        drawn.add_column(name, no_wrap=True)
    for name in ("K", "length", "decoded", *map(str, range(1, num_positions + 1))):
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        decoded = row.get("decoded_acceptance_length")
        drawn.add_row(
            row["task"],
            *([row["mode"]] if has_modes else []),
            str(row["num_speculative_tokens"]),
            f"{row['acceptance_length']:.2f}",
            "" if decoded is None else f"{decoded:.2f}",
            *(f"{share:.0%}" for share in row["acceptance_by_position"][:num_positions]),
        )
    return drawn


def picture(evaluation: Evaluation) -> Picture:
    """Acceptance by position at the largest K, a line for each task and mode."""
    largest = max(row["num_speculative_tokens"] for row in evaluation.rows)
    has_modes = len({row["mode"] for row in evaluation.rows}) > 1
    series = {
        f"{row['task']}, {row['mode']}" if has_modes else row["task"]: [
            Point(place, share) for place, share in enumerate(row["acceptance_by_position"], start=1)
        ]
        for row in evaluation.rows
        if row["num_speculative_tokens"] == largest
    }
    conditions = evaluation.conditions
    return Picture(
        name="acceptance",
        title=f"{conditions['target']}, draft {conditions['draft']}, greedy",
        x_title="position in the draft",
        y_title="share of drafts accepted so far",
        x_axis="positions",
        series=series,
    )
